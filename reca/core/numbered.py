"""Files that the Hub numbers, `<name>-00001-of-00003.<ending>`: which of a set are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath

_PART = re.compile(r"-(\d{5})-of-(\d{5})\b")
_WEIGHTS = (".safetensors", ".bin")  # numbered from 1; tables and archives are from 0


@dataclass(frozen=True)
class Incomplete:
    """A set of `count` numbered files of which only `found` exist; `missing` are the numbers of the others.

    `beside` is one of those that exist.
    """

    beside: PurePath
    count: int
    found: int
    missing: list[int]

    def path_of(self, number: int) -> str:
        """The path of a file of this set."""
        name = _PART.sub(f"-{number:05d}-of-{self.count:05d}", self.beside.name, count=1)
        return str(self.beside.with_name(name))


def incomplete(paths: Iterable[PurePath | str]) -> Iterator[Incomplete]:
    """The sets among these files that are not whole; files without a number do not count."""
    sets: dict[tuple[PurePath, str, str, int], dict[int, PurePath]] = {}
    for each in paths:
        path = PurePosixPath(each) if isinstance(each, str) else each
        if match := _PART.search(path.name):
            key = (path.parent, path.name[: match.start()], path.suffix, int(match[2]))
            sets.setdefault(key, {})[int(match[1])] = path
    for (_, _, _, count), found in sets.items():
        beside = next(iter(found.values()))
        first = int(0 not in found and (count in found or beside.suffix in _WEIGHTS))
        if missing := sorted(set(range(first, first + count)) - found.keys()):
            yield Incomplete(beside, count, len(found), missing)
