"""A job's inputs are hashed once per content; a change is found by the next job, and audits hash everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from reca.commands.inputs import records_of
from reca.core import artifacts, ledger
from reca.core.artifacts import MANIFEST, Stage
from reca.core.atomic import replacing
from reca.core.lineage import audit
from reca.data.readers.folder import FolderDataset


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that were hashed, in order."""
    names: list[str] = []
    sha256_file = artifacts.sha256_file

    def counted(path: str | Path) -> str:
        names.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.setattr(ledger, "sha256_file", counted)
    return names


@pytest.fixture
def made(tmp_path) -> Path:
    with Stage("data", tmp_path / "world", inputs={}, section={"a": 1}) as stage:
        for name in ("a.bin", "b.bin"):
            (stage.staging / name).write_text(f"content of {name}")
    return tmp_path / "world"


def test_a_second_job_hashes_nothing_again(made, hashed):
    for _ in range(3):
        assert records_of({"data": made}) == {"data": made / MANIFEST}
    assert hashed == ["a.bin", "b.bin"]
    os.utime(made / "a.bin")
    records_of({"data": made})
    assert hashed == ["a.bin", "b.bin", "a.bin"]
    artifacts.verify(made)  # the ledger is no part of the result
    assert audit([made]).sound


def test_a_ledger_that_another_job_is_writing_is_no_part_of_the_result(made):
    with replacing(made / ledger.LEDGER) as unfinished:
        assert unfinished.parent == made
        records_of({"data": made})
        assert audit([made]).sound


@pytest.mark.parametrize("inside", ["", "pictures"])
def test_a_data_sets_fingerprint_and_a_jobs_check_hash_a_file_once_together(
    tmp_path, hashed, inside
):
    with Stage("data", tmp_path / "world", inputs={}, section={"a": 1}) as stage:
        (stage.staging / inside).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(stage.staging / inside / "a.png")
    data = FolderDataset(tmp_path / "world" / inside)
    before = data.fingerprint()
    records_of({"data": tmp_path / "world"})
    (tmp_path / "world" / inside / "b.png").write_bytes(b"")
    assert hashed == ["a.png"] and data.fingerprint() == before
    (ledger_file,) = tmp_path.rglob(".reca-*")
    assert ledger_file == tmp_path / "world" / ledger.LEDGER


def test_a_change_with_the_old_size_and_time_is_found_and_the_ledger_proves_nothing_to_an_audit(
    made, hashed
):
    records_of({"data": made})
    before = (made / "b.bin").stat()
    (made / "b.bin").write_text("CONTENT of b.bin")
    os.utime(made / "b.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"world/b\.bin: content differs from the manifest's"):
        records_of({"data": made})
    known = ledger.load_ledger(made / ledger.LEDGER)
    believed = {"stamp": ledger.stamp(made / "b.bin"), "sha256": known["b.bin"]["sha256"]}
    ledger.save_ledger(made / ledger.LEDGER, known | {"b.bin": believed})
    records_of({"data": made})  # whoever can write here can fool a job
    (problem,) = audit([made]).problems
    assert "b.bin: content differs" in problem


def test_a_missing_or_added_file_is_found_with_a_ledger(made):
    records_of({"data": made})
    (made / "c.bin").write_text("more")
    with pytest.raises(ValueError, match=r"c\.bin: not in the manifest"):
        records_of({"data": made})
    (made / "c.bin").unlink()
    (made / "a.bin").unlink()
    with pytest.raises(ValueError, match=r"a\.bin: missing"):
        records_of({"data": made})
