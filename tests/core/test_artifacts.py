"""Records: a stage is whole or absent, its hashes hold, and a code hash follows exactly what is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reca.core import artifacts, fingerprints


def stage(out: Path, content: bytes = b"weights", **options: object) -> dict:
    with artifacts.Stage(
        "base", out, inputs={}, section={"a": 1}, seed=0, code="c", **options
    ) as running:
        (running.staging / "deep").mkdir()
        (running.staging / "deep" / "file.bin").write_bytes(content)
        running.note(tokens=7)
    return artifacts.read_manifest(out)


def test_a_stage_appears_whole(tmp_path: Path) -> None:
    manifest = stage(tmp_path / "out")
    assert manifest["outputs"]["deep/file.bin"]["bytes"] == 7
    assert artifacts.verify(tmp_path / "out") == manifest
    run = artifacts.read_json(tmp_path / "out" / "run.json")
    assert run["tokens"] == 7 and run["wall_seconds"] >= 0 and "hostname" not in json.dumps(run)


def test_equal_work_gives_equal_manifests(tmp_path: Path) -> None:
    first, second = stage(tmp_path / "a"), stage(tmp_path / "b")
    assert first == second
    assert (tmp_path / "a/manifest.json").read_bytes() == (
        tmp_path / "b/manifest.json"
    ).read_bytes()


def test_a_failed_stage_leaves_the_former_one(tmp_path: Path) -> None:
    stage(tmp_path / "out")
    with (
        pytest.raises(RuntimeError),
        artifacts.Stage("base", tmp_path / "out", inputs={}, section={}) as running,
    ):
        (running.staging / "half").write_bytes(b"")
        raise RuntimeError
    assert artifacts.verify(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_renames_is_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path / "out")
    write = artifacts.write_json

    def killed(path: Path, value: object) -> None:
        if path.name == artifacts.MANIFEST:
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(artifacts, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "out", b"other")
    with pytest.raises(ValueError, match=r"no manifest\.json, so this stage is not complete"):
        artifacts.read_manifest(tmp_path / "out")


@pytest.mark.parametrize("change", ["edit", "remove", "add", "manifest"])
def test_every_change_is_named(tmp_path: Path, change: str) -> None:
    stage(tmp_path)
    target = tmp_path / "deep" / "file.bin"
    if change == "edit":
        target.write_bytes(b"WEIGHTS")
    elif change == "remove":
        target.unlink()
    elif change == "add":
        target = tmp_path / "more"
        target.write_bytes(b"")
    else:
        target = tmp_path / "manifest.json"
        target.write_text(target.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=str(target)):
        artifacts.verify(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write_atomic(tmp_path / "file", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ValueError, match=r"cannot write 3 bytes .No space left on device.; free space"
    ):
        artifacts.write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken/out: cannot write here"):
        stage(tmp_path / "taken" / "out")


def test_code_hash_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {m for m, _ in fingerprints.installed().reached(["reca.align.run"])}
    assert {"reca.align.trainer", "reca.features.build", "reca.models.contract"} <= set(modules)
    assert not any(
        name.startswith(("reca.report", "reca.commands", "reca.models.showo")) for name in modules
    )
    assert "reca.config.schema" not in modules, "type-checking imports must not count"
    with pytest.raises(ValueError, match="no source found"):
        fingerprints.installed().reached(["reca.nowhere"])


def test_code_hash_covers_a_package_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "reca_kernels_probe"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "page.html").write_text("old")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = fingerprints.SourceTree().fingerprint(["reca_kernels_probe"])
    (package / "page.html").write_text("new")
    assert fingerprints.SourceTree().fingerprint(["reca_kernels_probe"]) != before


def test_what_a_killed_writer_left_is_removed_by_the_next(
    tmp_path: Path,
) -> None:
    """SIGKILL leaves a staging folder; it goes with the next run of that stage, others' folders stay."""
    code = (
        "import os, signal, sys; from reca.core.artifacts import Stage\n"
        "with Stage('a', sys.argv[1], inputs={}, section={}) as s:\n"
        "    (s.staging / 'big').write_bytes(b'0'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("out", "out.other"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.glob(".out*.partial-*/big"))) == 2
    with artifacts.Stage("a", tmp_path / "out", inputs={}, section={}) as living:
        assert list(tmp_path.glob(".out.partial-*")) == [living.staging]
        with artifacts.Stage("a", tmp_path / "out", inputs={}, section={}):
            assert living.staging.is_dir()
    assert not list(tmp_path.glob(".out.partial-*")) and artifacts.verify(tmp_path / "out")
    assert len(list(tmp_path.glob(".out.other.partial-*/big"))) == 1


@pytest.mark.parametrize("moment", ["in the block", "at the end"])
def test_a_full_disk_names_the_stage_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Also where a library raised it (pyarrow's has no file name); the former output stays until then."""
    full = OSError(28, "[Errno 28] Error writing bytes to file.")
    if moment == "at the end":
        monkeypatch.setattr(artifacts.os, "fsync", lambda _: (_ for _ in ()).throw(full))
    with (
        pytest.raises(
            ValueError, match=r"out: cannot complete the stage \(No space left on device\); free"
        ),
        artifacts.Stage("a", tmp_path / "out", inputs={}, section={}) as running,
    ):
        (running.staging / "file").write_bytes(b"1")
        if moment == "in the block":
            raise full
    assert not list(tmp_path.iterdir())
