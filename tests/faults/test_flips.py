"""Changed bytes in results and in unfinished work: found, with the file's name (R5)."""

from __future__ import annotations

import pytest

from reca.core.lineage import audit
from tests.core.test_lineage import link
from tests.core.test_sealed import KINDS as UNFINISHED


def test_a_changed_byte_of_a_results_folder_is_found(tmp_path, monkeypatch, campaign):
    monkeypatch.chdir(tmp_path)
    link("data/world", {})
    link("results/base", {"data": "data/world"})
    link("results/scores", {"model": "results/base"})
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for rng in campaign.draws(40, full=1000):
        path = rng.choice(files)
        whole = path.read_bytes()
        harmed = bytearray(whole)
        harmed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(harmed)
        with campaign.case(str(path.relative_to(tmp_path))):
            found = audit(["data", "results"])
            assert str(path.relative_to(tmp_path)) in "\n".join(found.problems + found.unsealed)
        path.write_bytes(whole)
    assert audit(["data", "results"]).sound


@pytest.mark.parametrize("kind", UNFINISHED, ids=lambda kind: kind.__name__)
def test_a_changed_byte_of_unfinished_work_is_named_or_changes_nothing(tmp_path, campaign, kind):
    path, use = kind(tmp_path)
    before, right = path.read_bytes(), use()
    for rng in campaign.draws(20, full=1000):
        harmed = bytearray(before)
        harmed[rng.randrange(len(before))] ^= rng.randrange(1, 256)
        path.write_bytes(harmed)
        with campaign.case():
            try:
                assert use() == right
            except ValueError as error:
                assert path.name in str(error)
