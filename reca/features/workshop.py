"""The work folder of a cache that is being built: finished shards by key, shared by processes.

A shard is two files, the features and the record that makes them count, named by a key that covers
images and encoder. So whatever is here is valid for its key, or never requested.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import lock_descriptor
from safetensors.torch import save

from reca.core import artifacts
from reca.core.atomic import replacing, write_atomic
from reca.core.ownership import WorkFolder
from reca.core.sealed import seal, unseal
from reca.features.store import ABOUT

if TYPE_CHECKING:
    from reca.models.contract import Features

_log = logging.getLogger(__name__)
_NARROWER = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Workshop:
    """Finished and unfinished shards in one folder."""

    folder: Path

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder; of the processes that share it, the last to succeed removes it."""
        descriptor = self._hold()
        try:
            yield
            if lock_descriptor(descriptor, blocking=False):
                self._work.remove()
            else:
                _log.debug("%s: another process still works here", self.folder)
        finally:
            os.close(descriptor)

    @property
    def _work(self) -> WorkFolder:
        return WorkFolder(self.folder, "cache")

    def _hold(self) -> int:
        """A shared lock on the folder itself, made anew if it was removed before the lock held."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = None
            try:
                descriptor = os.open(self.folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(descriptor), self.folder.stat()):
                    self._work.check(())  # while the lock holds, nobody removes it
                    self._work.claim()
                    held, descriptor = descriptor, None
                    return held
            except FileNotFoundError:
                continue
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    @contextmanager
    def lock(self, name: str, wait: bool) -> Iterator[bool]:
        """Hold a named lock, which the kernel frees if the process dies; False: another has it."""
        with open(self.folder / f"{name}.lock", "w") as file:
            yield lock_descriptor(file.fileno(), blocking=wait)

    def write(self, key: str, features: Features, record: dict[str, Any]) -> dict[str, Any]:
        """Finish a shard: the features first, then the record, which is returned with their hash."""
        stored = {name: narrowed(tensor).contiguous() for name, tensor in features.items()}
        # One metadata entry only: safetensors writes several in random order, and equal features
        # must give equal bytes.
        data = save(stored, metadata={"key": key})
        write_atomic(self._features(key), data)
        record = {**record, "key": key, "sha256": artifacts.sha256_bytes(data), "bytes": len(data)}
        write_atomic(self._record(key), seal(record))
        return record

    def finished(self, key: str) -> dict[str, Any] | None:
        """The record of a shard that is whole; None where there is none or a byte of it changed."""
        features, path = self._features(key), self._record(key)
        if not (path.is_file() and features.is_file()):
            return None
        record = unseal(path.read_bytes())
        if record is None or record["key"] != key:
            _log.warning("%s: damaged, its shard is encoded again", path)
        elif record["sha256"] == artifacts.sha256_file(features):
            return record
        else:
            _log.warning("%s: damaged, it is encoded again", features)
        return None

    def adopt(self, cache: Path) -> None:
        """Offer the shards of an older cache; `finished` checks one before it is used."""
        if not (cache / ABOUT).is_file() or not (cache / artifacts.MANIFEST).is_file():
            return
        seconds = _shard_seconds(cache)
        try:
            for shard in artifacts.read_json(artifacts.verified(cache / ABOUT))["shards"]:
                key = shard["record"]["key"]
                second_name(cache / shard["file"], self._features(key))
                record = {**shard["record"], "seconds": seconds.get(key, 0.0)}
                write_atomic(self._record(key), seal(record))
        except (ValueError, LookupError, TypeError, OSError) as problem:
            _log.warning("%s: the older cache is damaged, it is made again (%s)", cache, problem)

    def place(self, key: str, target: Path) -> None:
        """Give a finished shard its name in a cache."""
        second_name(self._features(key), target)

    def _features(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _shard_seconds(cache: Path) -> dict[str, float]:
    """What encoding each shard took; nothing where that was not recorded, or the record is damaged."""
    try:
        return dict(artifacts.read_run(cache).get("shard_seconds", {}))
    except ValueError as problem:
        _log.warning("%s: what encoding took is not known (%s)", cache, problem)
        return {}


def second_name(source: Path, target: Path) -> None:
    """Link a finished file, or copy it where that is not possible; finished files never change."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with replacing(target, durable=False) as partial:  # a shard is believed by its hash
            shutil.copyfile(source, partial)


def narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the smallest dtype that holds them exactly; anything else unchanged."""
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.numel() == 0:
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    for dtype in _NARROWER:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return tensor.to(dtype)
    return tensor
