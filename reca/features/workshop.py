"""The work folder of a cache under construction: finished shards by key, shared by processes.

A shard consists of two files, the features and the record that makes them valid, named by a key that
covers images and encoder. A file is therefore valid for its key, or never requested.
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
from safetensors.torch import save

from reca.core import artifacts
from reca.core.atomic import replacing, write_atomic
from reca.core.locks import demand_locks, lock_file
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
        """Lock the folder; of the processes that share it, the last to succeed removes it."""
        descriptor = self._hold()
        try:
            yield
            if lock_file(descriptor, self.folder):
                self._work.remove()
            else:
                _log.debug("%s: another process is still using this folder", self.folder)
        finally:
            os.close(descriptor)

    @property
    def _work(self) -> WorkFolder:
        return WorkFolder(self.folder, "cache")

    def _hold(self) -> int:
        """A shared lock on the folder itself, which is created again if it was removed before locking."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = None
            try:
                descriptor = os.open(self.folder, os.O_RDONLY)
                with demand_locks(self.folder):
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(descriptor), self.folder.stat()):
                    self._work.check(())  # the folder is not removed while it is locked
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
        """Take a named lock, which the kernel releases if the process dies; False if another process has it."""
        with open(self.folder / f"{name}.lock", "w") as file:
            yield lock_file(file.fileno(), self.folder, wait=wait)

    def write(self, key: str, features: Features, record: dict[str, Any]) -> dict[str, Any]:
        """Write a shard: the features first, then the record with their hash, which is returned."""
        stored = {name: narrowed(tensor).contiguous() for name, tensor in features.items()}
        # One metadata entry only: safetensors writes several in random order, but equal features
        # must give equal bytes.
        data = save(stored, metadata={"key": key})
        write_atomic(self._features(key), data)
        record = {**record, "key": key, "sha256": artifacts.sha256_bytes(data), "bytes": len(data)}
        write_atomic(self._record(key), seal(record))
        return record

    def finished(self, key: str) -> dict[str, Any] | None:
        """The record of an intact shard; None if it is missing or damaged."""
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
        """Make the shards of an existing cache available; `finished` checks each before it is used."""
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
            _log.warning(
                "%s: the existing cache is damaged and will be rebuilt (%s)", cache, problem
            )

    def place(self, key: str, target: Path) -> None:
        """Move a finished shard to its name in a cache."""
        second_name(self._features(key), target)

    def _features(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _shard_seconds(cache: Path) -> dict[str, float]:
    """Encoding time of each shard; empty if it was not recorded or the record is damaged."""
    try:
        return dict(artifacts.read_run(cache).get("shard_seconds", {}))
    except ValueError as problem:
        _log.warning("%s: encoding times are unknown (%s)", cache, problem)
        return {}


def second_name(source: Path, target: Path) -> None:
    """Hard-link a finished file, or copy it if that is not possible; finished files never change."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with replacing(target, durable=False) as partial:  # a shard is believed by its hash
            shutil.copyfile(source, partial)


def narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the smallest dtype that represents them exactly; other tensors unchanged."""
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.numel() == 0:
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    for dtype in _NARROWER:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return tensor.to(dtype)
    return tensor
