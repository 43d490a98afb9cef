"""The ledger of judge replies: append-only JSON lines, each synced to disk before it is used.

A reply that was paid for is never requested again: its key is the hash of everything that determines it. An incomplete
last line of a killed process is dropped; the lines before it remain valid. Every line has a checksum
(`reca.core.sealed`); a damaged line is an error that names its number, because its reply can neither be trusted nor be
obtained again for free. Lines of older versions have no checksum and are accepted with a warning. Scoring reads only
the ledger, so changing a parser costs nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import fsum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from reca.core.atomic import flush
from reca.core.locks import lock_file
from reca.core.sealed import begins_like, holds_seal, seal, unseal, unsealed

Status = Literal["reply", "refused"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One answered request. Transport failures are not recorded; the next run retries them."""

    key: str
    id: str
    status: Status
    reply: str  # raw text of the reply or refusal
    attempt: int = 0
    model: str = ""  # as reported by the endpoint
    usage: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0  # in the currency of the judge's prices
    determinants: dict[str, Any] = field(default_factory=dict)


_FIELDS = tuple(each.name for each in fields(Entry))
# How the workflow names the ledger of a shard, without its ending.
_SHARD = re.compile(r"(.+)-\d+-of-\d+")


def _replies_of_other_shards(path: Path) -> dict[str, Entry]:
    """The entries beside the ledger of a shard, of any number of shards; a ledger that cannot be read is left out."""
    run, found = _SHARD.fullmatch(path.stem), dict[str, Entry]()
    if run is None:
        return found
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        same = _SHARD.fullmatch(other.stem)
        if other == path or same is None or same[1] != run[1]:
            continue
        try:
            found.update({entry.key: entry for entry in Ledger(other)})
        except (OSError, ValueError) as error:
            _log.warning("%s; its replies are not used for %s", error, path.name)
    return found


class Ledger:
    """Replies by key, in one file. Only one process may write at a time; readers need no lock.

    Raises:
        ValueError: another process is writing this ledger, the file cannot be written, or a line before the
            last one is damaged (the message has its number).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._whole = 0  # size of the intact part in bytes
        self._unended = False  # whether the last line is complete but for its newline
        self._others: dict[str, Entry] = {}  # of other shards of the same run
        if self.path.exists():
            self._read()
        self._file: Any = None

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise ValueError(
                f"{self.path}: cannot write the ledger ({error.strerror}); check the folder's permissions"
            ) from error
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        return self

    def _take(self) -> None:
        """Lock the file, read its entries, repair its end, and sync its folder so that the file itself persists."""
        if not lock_file(self._file.fileno(), self.path):
            raise ValueError(
                f"{self.path}: another process is writing this ledger; wait for it, or stop it"
            )
        self._entries, self._whole = {}, 0
        self._read()
        self._close_off()
        flush(self.path.parent)
        self._others = _replies_of_other_shards(self.path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _close_off(self) -> None:
        """Truncate an incomplete last line, or add its newline, so that the next entry starts on a new line."""
        if self.path.stat().st_size > self._whole:
            os.ftruncate(self._file.fileno(), self._whole)
            os.fsync(self._file.fileno())
        if self._unended:
            self._append(b"\n")
            self._whole += 1

    def _read(self) -> None:
        *lines, last = self.path.read_bytes().split(b"\n")
        older = 0
        for number, line in enumerate(lines, 1):
            entry, sealed = self._entry(line, number)
            older += not sealed
            self._entries.setdefault(entry.key, entry)
            self._whole += len(line) + 1
        if older:
            _log.warning(
                "%s: %d lines from an older version have no checksum; damage to them cannot be detected",
                self.path,
                older,
            )
        self._read_last(last, len(lines) + 1)

    def _read_last(self, piece: bytes, number: int) -> None:
        """Read what follows the last newline: a complete line is accepted, an incomplete one ignored."""
        self._unended = _opened(piece) is not None
        if self._unended:
            entry, _ = self._entry(piece, number)
            self._entries.setdefault(entry.key, entry)
            self._whole += len(piece)
        elif holds_seal(piece) or _opened(piece[:-1]) is not None:
            # an interrupted write leaves at most a part of a line
            raise self._damaged(number, "its newline was overwritten")
        elif not self._entries and not begins_like(piece, "key"):
            raise ValueError(
                f"{self.path}: not a ledger of replies ({piece[:40]!r}); give another file"
            )
        elif piece:
            _log.warning("%s: ignoring an incomplete last line", self.path)

    def _entry(self, line: bytes, number: int) -> tuple[Entry, bool]:
        """The entry of a line, and whether it has a checksum; ValueError if the line is damaged."""
        value = _opened(line)
        if value is None:
            raise self._damaged(number, "its checksum does not match")
        try:
            return _checked(Entry(**value)), unseal(line) is not None
        except (ValueError, TypeError) as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {number}: damaged ({reason}); restore the ledger from a copy, or remove this "
            "line and pay for its reply again"
        )

    def add(self, entry: Entry) -> None:
        """Append an entry, synced to disk on return; ValueError if it cannot be written."""
        line = seal(asdict(entry)).encode() + b"\n"
        with self._lock:
            self._append(line)
            self._whole += len(line)
            self._entries.setdefault(entry.key, entry)

    def _append(self, line: bytes) -> None:
        """Write and sync a line; a partial write is truncated before the error is raised."""
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._whole)
            raise ValueError(
                f"{self.path}: cannot append {len(line)} bytes ({error.strerror}); free disk space"
            ) from error

    def get(self, key: str) -> Entry | None:
        """The entry with this key; None if there is none."""
        return self._entries.get(key)

    def adopt(self, key: str) -> Entry | None:
        """Add the entry that another shard of the run paid for, without its cost; None if none has it.

        Requests move between shards when their number changes.
        """
        found = self._others.get(key)
        if found is None:
            return None
        entry = replace(found, cost=0.0)
        self.add(entry)
        return entry

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def cost(self) -> float:
        """The total cost of all replies."""
        return sum(entry.cost for entry in self._entries.values())


def _opened(line: bytes) -> dict[str, Any] | None:
    sealed = unseal(line)
    return unsealed(line, _FIELDS) if sealed is None else sealed


def _checked(entry: Entry) -> Entry:
    """The entry; ValueError for a field of the wrong type."""
    texts = (entry.key, entry.id, entry.reply)
    if not all(isinstance(text, str) for text in texts) or entry.status not in get_args(Status):
        raise ValueError("key, id, reply or status has the wrong type")
    if not isinstance(entry.cost, int | float) or not 0 <= entry.cost < float("inf"):
        raise ValueError(f"cost {entry.cost!r}")
    return entry


def totals(entries: Mapping[str, Entry] | Ledger) -> dict[str, Any]:
    """Counts of replies and refusals, tokens, cost and models, for manifests and reports."""
    found = list(entries.values() if isinstance(entries, Mapping) else entries)
    return {
        "replies": sum(entry.status == "reply" for entry in found),
        "refused": sum(entry.status == "refused" for entry in found),
        "cost": fsum(entry.cost for entry in found),  # in any order the same
        "tokens": {
            name: sum(entry.usage.get(name, 0) for entry in found)
            for name in ("prompt_tokens", "completion_tokens")
        },
        "models": sorted({entry.model for entry in found if entry.model}),
    }
