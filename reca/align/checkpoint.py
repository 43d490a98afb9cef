"""Checkpoints that are whole or absent: safetensors plus a manifest, hash-checked before anything is resumed.

    step-0000000010/  trainable-00001.safetensors  optimizer-...  ema-...  state.json  manifest.json

A save writes a hidden folder, flushes every file and the folder, and renames it; the manifest holds the
sha256 of every file. A crash leaves a hidden folder that nothing reads.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import lock_descriptor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reca.align.distributed import ProcessGroup, whole
from reca.core.artifacts import fsync_directory, read_json, sha256_file, sha256_json
from reca.core.documents import json_value

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, Tensor]]
"""Named tensors by group: trainable, optimizer, ema."""

SHARD_BYTES = (
    4 * 2**30
)  # rank 0 holds at most this much of a sharded model in memory while it saves
MANIFEST, STATE = "manifest.json", "state.json"
STEP_NAME = re.compile(r"step-(\d{10})")


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, if any, and what was wrong with newer ones: (folder, reason)."""

    path: Path | None
    broken: list[tuple[Path, str]]

    @property
    def step(self) -> int:
        """Completed optimizer steps; 0 where nothing valid was found."""
        return step_of(self.path) if self.path else 0


def step_of(path: Path) -> int:
    """Completed optimizer steps, from the folder's name."""
    return int(path.name.removeprefix("step-"))


# ---- save --------------------------------------------------------------------------------------
def save(
    folder: Path,
    step: int,
    groups: Groups,
    state: Mapping[str, Any],
    *,
    keep: int,
    processes: ProcessGroup,
) -> Path:
    """Write the checkpoint of `step`, then purge all but the newest `keep`; every rank calls it.

    ValueError names the path and the bytes needed where the disk is full or not writable; former
    checkpoints stay as they are.
    """
    target = folder / f"step-{step:010d}"
    temporary = folder / f".saving-{target.name}"
    needed = sum(size_of(group.values()) for group in groups.values())
    with _explained(target, needed), _removed_after(temporary, processes):
        if processes.first:
            _make_room(folder, temporary, needed)
        files = [
            file
            for name, group in groups.items()
            for file in _write_group(temporary, name, group, processes)
        ]
        if processes.first:
            _seal(temporary, target, files, step, state)
    if processes.first:
        _purge(folder, step, keep)
    processes.barrier()
    return target


@contextmanager
def _explained(target: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"{target}: cannot write a checkpoint of {needed} bytes ({reason}); free space or "
            "choose another folder, then run the same command: it continues from the former "
            "checkpoint, which is intact"
        ) from error


@contextmanager
def _removed_after(temporary: Path, processes: ProcessGroup) -> Iterator[None]:
    try:
        yield
    finally:
        if processes.first:  # another rank would take the folder from under the one that writes
            shutil.rmtree(temporary, ignore_errors=True)


def check_room(folder: Path, size: int, *, saves: int, keep: int) -> None:
    """ValueError, before a run, where `saves` more checkpoints of `size` bytes will not find room; `keep` stay.

    A save needs room for one checkpoint more than are kept.
    """
    needed = size * max(0, min(saves, keep + 1 - len(_steps(folder))))
    probe = folder / ".saving-probe"
    try:
        _make_room(folder, probe, needed)
        probe.rmdir()
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write {needed} bytes of checkpoints ({error.strerror}); free space or choose "
            "another folder"
        ) from error


def _make_room(folder: Path, temporary: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"only {free} bytes are free")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()


def _write_group(
    folder: Path, name: str, group: Mapping[str, Tensor], processes: ProcessGroup
) -> list[Path]:
    """Gather tensor by tensor and write files of at most SHARD_BYTES; rank 0 writes, all gather."""
    held: dict[str, Tensor] = {}
    files: list[Path] = []

    def write() -> None:
        files.append(folder / f"{name}-{len(files) + 1:05d}.safetensors")
        save_file(held, files[-1])
        _flush(files[-1])
        held.clear()

    for key, tensor in group.items():
        full = whole(tensor)
        if not processes.first:
            continue
        if held and size_of([*held.values(), full]) > SHARD_BYTES:
            write()
        held[key] = full
    if held:
        write()
    return files


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    _flush(path)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def _seal(
    temporary: Path, target: Path, files: Sequence[Path], step: int, state: Mapping[str, Any]
) -> None:
    """State and manifest, then the rename that makes the checkpoint exist."""
    _write_text(temporary / STATE, _canonical({**state, "step": step}))
    described = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in [*files, temporary / STATE]
    }
    manifest = {"step": step, "files": described}
    _write_text(temporary / MANIFEST, _canonical({**manifest, "sha256": sha256_json(manifest)}))
    fsync_directory(temporary)
    os.replace(temporary, target)
    fsync_directory(target.parent)


def _purge(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` up to `step`. The one just written is whole and always among them."""
    for path in _steps(folder):
        if path.name <= f"step-{step:010d}":
            keep -= 1
        if keep < 0:
            _remove(path)


def _remove(path: Path) -> None:
    """Hide a checkpoint, then delete it; a failure is logged and tried again at the next start."""
    hidden = path.with_name(f".purged-{path.name}")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        logger.warning("%s: cannot remove this old checkpoint (%s)", path, error.strerror)


# ---- find and read -----------------------------------------------------------------------------
def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if STEP_NAME.fullmatch(path.name)), reverse=True
    )


def verify(path: Path) -> None:
    """Hash every file; ValueError names the first that is missing, changed or unknown."""
    manifest = path / MANIFEST
    try:
        text = manifest.read_text()
        described = json_value(text, manifest)
        # other bytes with the same meaning are damage too
        intact = _canonical(described) == text and described["step"] == step_of(path)
        intact = intact and described.pop("sha256") == sha256_json(described)
        files = described["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest}: missing or damaged ({error})") from error
    if not intact:
        raise ValueError(f"{manifest}: damaged")
    present = {found.name for found in path.iterdir()} - {MANIFEST}
    for name in sorted(present ^ set(files)):
        raise ValueError(
            f"{path / name}: {'not in the manifest' if name in present else 'missing'}"
        )
    for name, expected in files.items():
        if sha256_file(path / name) != expected["sha256"]:
            raise ValueError(f"{path / name}: content differs from the manifest's sha256")


def latest(folder: Path) -> Found:
    """The newest checkpoint whose hashes hold; newer broken ones are reported, not touched."""
    broken: list[tuple[Path, str]] = []
    for path in _steps(folder):
        try:
            verify(path)
        except (ValueError, OSError) as error:
            broken.append((path, str(error)))
        else:
            return Found(path, broken)
    return Found(None, broken)


def recover(folder: Path) -> Found:
    """`latest`, after clearing what crashes left; broken newer checkpoints are set aside as `step-N.broken`.

    Call it under `exclusive`: it takes every unfinished save in the folder for abandoned.
    """
    for pattern in (".saving-*", ".purged-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    found = latest(folder)
    for path, reason in found.broken:
        logger.warning("%s; skipped, continuing from step %d", reason, found.step)
        aside = path.with_name(f"{path.name}.broken")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    return found


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return read_json(path / STATE)


def read_tensors(path: Path, group: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a group on the CPU, one at a time."""
    for file in sorted(path.glob(f"{group}-*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder for one run; ValueError if another process trains in it (a job submitted twice)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write here ({error.strerror}); choose a writable folder"
        ) from error
    with lock:
        if not lock_descriptor(lock.fileno(), blocking=False):
            raise ValueError(
                f"{folder}: another process trains here; wait for it or choose another folder"
            )
        yield


# ---- same run? ---------------------------------------------------------------------------------
def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted path: value}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def refuse_changes(path: Path, saved: Any, current: Any, allow: Sequence[str]) -> None:
    """ValueError with one line per field in which this run differs from the one that wrote `path`.

    `allow` lists dotted fields that may change (a prefix covers all below it).
    """
    before, now = flatten(saved), flatten(json.loads(json.dumps(current)))
    changed = [
        name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
    ]
    refused = [
        name for name in changed if not any(f"{name}.".startswith(f"{free}.") for free in allow)
    ]
    if refused:
        lines = [f"  {name}: {before.get(name)!r} -> {now.get(name)!r}" for name in refused]
        raise ValueError(
            "\n".join(
                [f"{path}: this checkpoint belongs to a run with another configuration:", *lines]
            )
            + "\nrestore these fields, start in a new folder, or allow the change by name"
        )
