"""Atomic checkpoints: safetensors plus a manifest, hash-checked before training resumes.

    step-0000000010/  trainable-00001.safetensors  optimizer-...  ema-...  state.json  manifest.json

A save writes a hidden folder, flushes every file and the folder, then renames the folder; the manifest
holds the sha256 of every file. A crash leaves a hidden folder that is never read.
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

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reca.align.distributed import ProcessGroup, full_tensor
from reca.core.artifacts import read_json, sha256_file, sha256_json
from reca.core.atomic import disk_errors, flush, publish
from reca.core.documents import json_value
from reca.core.locks import lock_file

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, Tensor]]
"""Named tensors by group: trainable, optimizer, ema."""

SHARD_BYTES = 4 * 2**30  # the most that rank 0 holds of a sharded model in memory while saving
MANIFEST, STATE = "manifest.json", "state.json"
STEP_NAME = re.compile(r"step-(\d{10})")


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, if any, and newer broken ones as (folder, reason)."""

    path: Path | None
    broken: list[tuple[Path, str]]

    @property
    def step(self) -> int:
        """Completed optimizer steps; 0 if no valid checkpoint was found."""
        return step_of(self.path) if self.path else 0


def step_of(path: Path) -> int:
    """Completed optimizer steps, taken from the folder's name."""
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

    ValueError with the path and the bytes needed if the disk is full or not writable; earlier
    checkpoints are unchanged.
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
            "choose another folder, then run the same command to resume from the previous "
            "checkpoint, which is intact"
        ) from error


@contextmanager
def _removed_after(temporary: Path, processes: ProcessGroup) -> Iterator[None]:
    try:
        yield
    finally:
        if (
            processes.first
        ):  # only rank 0 removes folders: another rank could remove the one being written
            shutil.rmtree(temporary, ignore_errors=True)


def check_room(folder: Path, size: int, *, saves: int, keep: int) -> None:
    """Check before a run that `saves` more checkpoints of `size` bytes fit when `keep` are kept, else ValueError.

    A save needs space for one checkpoint more than are kept.
    """
    needed = size * max(0, min(saves, keep + 1 - len(_steps(folder))))
    probe = folder / ".saving-probe"
    with disk_errors(folder, f"write {needed} bytes of checkpoints"):
        _make_room(folder, probe, needed)
        probe.rmdir()


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
    shard: dict[str, Tensor] = {}
    files: list[Path] = []

    def write() -> None:
        files.append(folder / f"{name}-{len(files) + 1:05d}.safetensors")
        save_file(shard, files[-1])
        flush(files[-1])
        shard.clear()

    for key, tensor in group.items():
        full = full_tensor(tensor)
        if not processes.first:
            continue
        if shard and size_of([*shard.values(), full]) > SHARD_BYTES:
            write()
        shard[key] = full
    if shard:
        write()
    return files


def size_of(tensors: Iterable[Tensor]) -> int:
    """Total size of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    flush(path)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def _seal(
    temporary: Path, target: Path, files: Sequence[Path], step: int, state: Mapping[str, Any]
) -> None:
    """Write state and manifest, then rename the folder, which makes the checkpoint visible."""
    _write_text(temporary / STATE, _canonical({**state, "step": step}))
    described = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in [*files, temporary / STATE]
    }
    manifest = {"step": step, "files": described}
    _write_text(temporary / MANIFEST, _canonical({**manifest, "sha256": sha256_json(manifest)}))
    publish(temporary, target)


def _purge(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, which include the one just written."""
    for path in _steps(folder):
        if path.name <= f"step-{step:010d}":
            keep -= 1
        if keep < 0:
            _remove(path)


def _remove(path: Path) -> None:
    """Hide a checkpoint, then delete it; a failure is logged and retried at the next start."""
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
    """Verify the hash of every file; ValueError names the first that is missing, changed or unknown."""
    manifest = path / MANIFEST
    try:
        text = manifest.read_text()
        described = json_value(text, manifest)
        # different bytes with the same meaning count as damage, too
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
    """The newest checkpoint with valid hashes; newer broken ones are reported and left alone."""
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
    """`latest`, after removing leftovers of crashes; broken newer checkpoints are renamed to `step-N.broken`.

    Call it under `exclusive`: it treats every unfinished save in the folder as abandoned.
    """
    for pattern in (".saving-*", ".purged-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    found = latest(folder)
    for path, reason in found.broken:
        logger.warning("%s; skipped, resuming from step %d", reason, found.step)
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
    """Lock the folder for one run; ValueError if another process trains in it (a job submitted twice)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write here ({error.strerror}); choose a writable folder"
        ) from error
    with lock:
        if not lock_file(lock.fileno(), folder):
            raise ValueError(
                f"{folder}: another process is training here; wait for it or choose another folder"
            )
        yield


# ---- identity of a run --------------------------------------------------------------------------------
def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted path: value}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def refuse_changes(
    path: Path, saved: Any, current: Any, allow: Sequence[str], *, remedy: str
) -> list[str]:
    """The fields in which this run differs from the one that wrote `path`; ValueError lists those not in `allow`.

    `allow` lists dotted fields that may change (a prefix covers all fields below it); `remedy` ends the error.
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
        what = f"{path}: belongs to a run with another configuration or code:"
        raise ValueError("\n".join([what, *lines, remedy]))
    return changed
