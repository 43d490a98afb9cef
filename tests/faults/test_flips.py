"""Changed bytes in results, found by the audit with the file's name (R5)."""

from __future__ import annotations

from reca.audit import audit
from tests.test_audit import link


def test_a_changed_byte_of_a_results_folder_is_found(tmp_path, monkeypatch, campaign):
    monkeypatch.chdir(tmp_path)
    link("data/world", {})
    link("results/base", {"data": "data/world"})
    link("results/scores", {"model": "results/base"})
    files = sorted(
        path for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.json"
    )
    for rng in campaign.draws(40, full=1000):
        path = rng.choice(files)
        whole = path.read_bytes()
        harmed = bytearray(whole)
        harmed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(harmed)
        with campaign.case(str(path.relative_to(tmp_path))):
            problems = "\n".join(audit(["data", "results"]).problems)
            assert str(path.relative_to(tmp_path)) in problems
        path.write_bytes(whole)
    assert audit(["data", "results"]).sound
