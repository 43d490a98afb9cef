"""The ledger of judge replies: append-only JSON lines, each synced to the disk before it counts.

A reply that was paid for is never asked for again: its key is the hash of all that determines it. A
line that a killed process left unfinished is ignored and closed off; everything before it stands. Every
line is sealed (`reca.core.sealed`): a damaged one is refused by its number, since neither its reply can be
believed nor can it be made again for nothing. Lines of an older reca have no seal; they count, with a warning.
Scoring reads the ledger and nothing else, so a changed parser costs nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from filelock import lock_descriptor

from reca.core.atomic import flush
from reca.core.sealed import begins_like, holds_seal, seal, unseal, unsealed

Status = Literal["reply", "refused"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One answered request. A transport failure is no entry: it is tried again by the next run."""

    key: str
    id: str
    status: Status
    reply: str  # raw text; of a refusal, what was said
    attempt: int = 0
    model: str = ""  # what the endpoint says it was
    usage: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0  # in the currency of the judge's prices
    determinants: dict[str, Any] = field(default_factory=dict)


_FIELDS = tuple(each.name for each in fields(Entry))


class Ledger:
    """Replies by key, in one file. One process writes at a time; readers need no lock.

    Raises:
        ValueError: another process writes this ledger, the file cannot be written, or a line in its
            middle is damaged (named with its number).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._whole = 0  # bytes up to which the file is whole
        self._unended = False  # whether only the end of its last line is missing
        if self.path.exists():
            self._read()
        self._file: Any = None

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot write the ledger ({error.strerror})") from error
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        return self

    def _take(self) -> None:
        """Lock the file for this process, read what is there, and make its name last as its lines do."""
        try:
            locked = lock_descriptor(self._file.fileno(), blocking=False)
        except OSError as error:
            raise ValueError(
                f"{self.path}: cannot be locked ({error.strerror}); put the ledger on another disk"
            ) from error
        if not locked:
            raise ValueError(
                f"{self.path}: another process is asking this judge; wait for it, or stop it"
            )
        self._entries, self._whole = {}, 0
        self._read()
        self._close_off()
        flush(self.path.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _close_off(self) -> None:
        """Cut what a killed process left unfinished, so that the next line begins on its own."""
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
                "%s: %d lines of an older reca carry no seal; damage to them cannot be noticed",
                self.path,
                older,
            )
        self._read_last(last, len(lines) + 1)

    def _read_last(self, piece: bytes, number: int) -> None:
        """What follows the last line end: a whole line counts without its end, a part of one is ignored."""
        self._unended = _opened(piece) is not None
        if self._unended:
            entry, _ = self._entry(piece, number)
            self._entries.setdefault(entry.key, entry)
            self._whole += len(piece)
        elif holds_seal(piece) or _opened(piece[:-1]) is not None:
            # a kill leaves a part of a line, never more than a line
            raise self._damaged(number, "its line end is another byte")
        elif not self._entries and not begins_like(piece, "key"):
            raise ValueError(
                f"{self.path}: no ledger of replies ({piece[:40]!r}); name another file"
            )
        elif piece:
            _log.warning("%s: an unfinished last line is ignored", self.path)

    def _entry(self, line: bytes, number: int) -> tuple[Entry, bool]:
        """The entry of a line, and whether its seal vouches for it; ValueError where neither fits."""
        value = _opened(line)
        if value is None:
            raise self._damaged(number, "its seal does not fit")
        try:
            return _checked(Entry(**value)), unseal(line) is not None
        except (ValueError, TypeError) as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {number}: damaged ({reason}); restore the ledger from a copy, or remove this "
            "line to pay for its reply again"
        )

    def add(self, entry: Entry) -> None:
        """Append an entry; it is on the disk when this returns. ValueError where the disk refuses it."""
        line = seal(asdict(entry)).encode() + b"\n"
        with self._lock:
            self._append(line)
            self._whole += len(line)
            self._entries.setdefault(entry.key, entry)

    def _append(self, line: bytes) -> None:
        """Write and sync a line; where the disk takes only a part of it, that part is cut off again."""
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._whole)
            raise ValueError(
                f"{self.path}: cannot append {len(line)} bytes ({error.strerror}); free space"
            ) from error

    def get(self, key: str) -> Entry | None:
        """The entry of a key, if there is one."""
        return self._entries.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def cost(self) -> float:
        """What all replies cost so far."""
        return sum(entry.cost for entry in self._entries.values())


def _opened(line: bytes) -> dict[str, Any] | None:
    sealed = unseal(line)
    return unsealed(line, _FIELDS) if sealed is None else sealed


def _checked(entry: Entry) -> Entry:
    """The entry; ValueError for a field of another kind than this file writes."""
    texts = (entry.key, entry.id, entry.reply)
    if not all(isinstance(text, str) for text in texts) or entry.status not in get_args(Status):
        raise ValueError("key, id, reply and status are not those of a reply")
    if not isinstance(entry.cost, int | float) or not 0 <= entry.cost < float("inf"):
        raise ValueError(f"cost {entry.cost!r}")
    return entry


def totals(entries: Mapping[str, Entry] | Ledger) -> dict[str, Any]:
    """Counts, tokens, cost and the models that answered, for records and reports."""
    found = list(entries.values() if isinstance(entries, Mapping) else entries)
    return {
        "replies": sum(entry.status == "reply" for entry in found),
        "refused": sum(entry.status == "refused" for entry in found),
        "cost": sum(entry.cost for entry in found),
        "tokens": {
            name: sum(entry.usage.get(name, 0) for entry in found)
            for name in ("prompt_tokens", "completion_tokens")
        },
        "models": sorted({entry.model for entry in found if entry.model}),
    }
