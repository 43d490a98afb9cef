"""Checkpoints are whole or absent: crashes (R2), full and read-only disks (R3), flipped bytes (R5), purging (R7)."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pathlib
import resource
import shutil
from collections import namedtuple

import pytest
import torch

from reca.align import checkpoint
from reca.align.distributed import ProcessGroup
from tests.file_operations import CUT, kill_points, tamper

GROUPS = ("trainable", "optimizer", "ema")


def tensors(step: int) -> dict:
    return {group: {f"{group}.w": torch.full((40, 10), float(step))} for group in GROUPS}


def save(folder, step: int, keep: int = 2):
    return checkpoint.save(
        folder, step, tensors(step), {"run": {}}, keep=keep, processes=ProcessGroup()
    )


def assert_holds(folder, step: int) -> None:
    found = checkpoint.latest(folder)
    assert found.step == step and not found.broken
    for group in GROUPS:
        read = dict(checkpoint.read_tensors(found.path, group))
        assert torch.equal(read[f"{group}.w"], tensors(step)[group][f"{group}.w"])


# ---- R2 ----------------------------------------------------------------------------------------
POINTS = [
    (checkpoint, "save_file"),
    (os, "fsync"),
    (os, "replace"),
    (os, "rmdir"),
    (pathlib.Path, "write_text"),
    (pathlib.Path, "mkdir"),
]


def test_crash_at_every_file_operation(tmp_path, campaign):
    def crash(name):
        save(tmp_path / name, 2, keep=1)

    for number in range(1, 60):
        for moment in ("before", "after"):
            save(tmp_path / f"{number}-{moment}", 1)
    for name, code in kill_points(POINTS, crash):
        folder = tmp_path / name
        found = checkpoint.latest(folder)
        assert_holds(folder, found.step)
        assert found.step in (1, 2)
        if code == 0:
            assert found.step == 2
            continue
        assert code == CUT
        campaign.count(1)
        checkpoint.recover(folder)
        assert not list(folder.glob(".*"))
        if found.step == 1:
            save(folder, 2, keep=1)
            assert_holds(folder, 2)
    assert campaign.tried >= 24  # at least 12, each before and after its effect


def test_error_at_every_file_operation(tmp_path, monkeypatch, campaign):
    refused = 0
    for fail_at in range(1, 60):
        folder = tmp_path / str(fail_at)
        save(folder, 1)
        with monkeypatch.context() as patch:
            done = tamper(POINTS, fail_at, False, fail_with(errno.EIO), patch.setattr)
            try:
                save(folder, 2, keep=1)
            except ValueError as error:
                refused += 1
                assert "step-0000000002" in str(error) and "4800 bytes" in str(error)
        step = checkpoint.latest(folder).step
        assert_holds(folder, step)
        assert not list(folder.glob(".saving-*"))
        if len(done) < fail_at:
            break
        campaign.count(1)
    assert refused >= 12


def fail_with(number: int):
    def fail():
        raise OSError(number, os.strerror(number))

    return fail


# ---- R3 ----------------------------------------------------------------------------------------
def test_disk_known_to_be_full(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(ValueError, match=r"step-0000000002: cannot write a checkpoint of 4800 byt"):
        save(tmp_path, 2)
    assert_holds(tmp_path, 1)


def test_disk_fills_up_while_writing(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # every larger file fails, for real
    try:
        with pytest.raises(
            ValueError, match=r"step-0000000002: .* 4800 bytes .*previous checkpoint"
        ):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_holds(tmp_path, 1)
    save(tmp_path, 2)
    assert_holds(tmp_path, 2)


def test_read_only_folder(tmp_path, monkeypatch):
    save(tmp_path, 1)
    # root may write anywhere, so the refusal of the file system is put in by hand
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "mkdir", lambda *a, **o: fail_with(errno.EROFS)())
        with pytest.raises(ValueError, match=r"step-0000000002.*4800 bytes.*Read-only file system"):
            save(tmp_path, 2)
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", lambda *_: fail_with(number)())
    with (
        pytest.raises(ValueError, match=rf"{tmp_path}: this file system has no locks .*--work"),
        checkpoint.exclusive(tmp_path),
    ):
        pass


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"taken.*4800 bytes"):
        save(tmp_path / "taken", 1)
    with (
        pytest.raises(ValueError, match=r"taken: cannot write here"),
        checkpoint.exclusive(tmp_path / "taken"),
    ):
        pass


# ---- R5 ----------------------------------------------------------------------------------------
def test_every_flipped_byte_is_found_and_named(tmp_path, campaign):
    path = save(tmp_path, 1)
    files = sorted(path.iterdir())
    assert [file.name for file in files] == [
        "ema-00001.safetensors",
        "manifest.json",
        "optimizer-00001.safetensors",
        "state.json",
        "trainable-00001.safetensors",
    ]
    for number, chosen in enumerate(campaign.draws(100, full=1000)):
        file = files[number % len(files)]
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[chosen.randrange(len(intact))] ^= chosen.randrange(1, 256)
        file.write_bytes(damaged)
        with campaign.case(file.name):
            found = checkpoint.latest(tmp_path)
            assert found.path is None
            assert found.broken[0][1].startswith(str(file))
        file.write_bytes(intact)
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("name", ["trainable-00001.safetensors", "state.json", "manifest.json"])
def test_missing_and_truncated_files_are_named(tmp_path, name):
    path = save(tmp_path, 1)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    assert name in checkpoint.latest(tmp_path).broken[0][1]
    (path / name).unlink()
    assert name in checkpoint.latest(tmp_path).broken[0][1]
    (path / name).write_bytes(content)
    (path / "stranger").write_text("")
    assert "stranger: not in the manifest" in checkpoint.latest(tmp_path).broken[0][1]


def test_newest_valid_wins_and_broken_ones_are_set_aside(tmp_path, caplog):
    for step in (1, 2, 3):
        path = save(tmp_path, step, keep=3)
    (path / "state.json").write_text("{}")
    found = checkpoint.latest(tmp_path)
    assert found.step == 2 and found.broken[0][0] == path
    with caplog.at_level(logging.WARNING):
        assert checkpoint.recover(tmp_path).step == 2
    assert "step-0000000003/state.json" in caplog.text
    assert (tmp_path / "step-0000000003.broken").is_dir()
    save(tmp_path, 3)
    assert_holds(tmp_path, 3)


# ---- R7 ----------------------------------------------------------------------------------------
def steps_in(folder) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def test_keeps_the_last_k(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert steps_in(tmp_path) == [15, 20]
    save(tmp_path, 25, keep=1)
    assert steps_in(tmp_path) == [25]


def test_the_only_valid_one_stays_though_newer_names_exist(tmp_path):
    broken = save(tmp_path, 30)
    (broken / "manifest.json").unlink()
    save(tmp_path, 12, keep=1)
    save(tmp_path, 13, keep=1)
    found = checkpoint.latest(tmp_path)
    assert found.step == 13 and steps_in(tmp_path) == [13, 30]


def test_failed_purge_is_survived_and_done_later(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "rmdir", lambda *a, **o: fail_with(errno.EBUSY)())
        save(tmp_path, 2, keep=1)
    assert_holds(tmp_path, 2)
    assert "step-0000000001: cannot remove" in caplog.text
    checkpoint.recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000002"]


# ---- files -------------------------------------------------------------------------------------
def test_large_groups_are_split_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1000)
    group = {f"w{index}": torch.full((100,), float(index)) for index in range(7)}
    path = checkpoint.save(tmp_path, 1, {"trainable": group}, {}, keep=1, processes=ProcessGroup())
    assert len(list(path.glob("trainable-*.safetensors"))) == 4
    read = dict(checkpoint.read_tensors(path, "trainable"))
    assert all(torch.equal(read[name], group[name]) for name in group) and len(read) == 7


def test_equal_content_gives_equal_bytes(tmp_path):
    one, two = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert json.loads((one / "manifest.json").read_text())["step"] == 1
