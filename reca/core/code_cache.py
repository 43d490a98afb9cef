"""What was found in source files, kept between processes beside Python's bytecode: parsing them takes half a second.

An entry is looked up by the hash of the text that it was found in, and all are dropped when the code that finds them
changes, so none can be out of date. Like bytecode the file may be deleted at any time, and it is not written under
PYTHONDONTWRITEBYTECODE or into a folder that is read-only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from reca.core.artifacts import sha256_file, write_atomic

_MOST = 4096  # entries; above that, only those of this process are kept


class CodeCache:
    """Results by the text that they were found in, for the module in the file `source`, which finds them."""

    def __init__(self, source: Path) -> None:
        self._version = sha256_file(source)
        self._path = self._place(source)
        self._entries = self._read()
        self._used: set[str] = set()
        self._changed = False

    def found(self, kind: str, text: bytes, find: Callable[[bytes], Any]) -> Any:
        """The result of `find(text)`, which JSON can hold; `kind` tells apart what is found in one text."""
        key = f"{kind} {sha256(text).hexdigest()}"
        if key not in self._entries:
            self._entries[key] = find(text)
            self._changed = True
        self._used.add(key)
        return self._entries[key]

    def save(self) -> None:
        """Write new entries; a file that cannot be written is only a slower start next time."""
        if not self._changed or self._path is None or sys.dont_write_bytecode:
            return
        if len(self._entries) > _MOST:
            self._entries = {key: self._entries[key] for key in self._used}
        content = json.dumps({"version": self._version, "entries": self._entries})
        with contextlib.suppress(ValueError):
            write_atomic(self._path, content, durable=False)
        self._changed = False

    @staticmethod
    def _place(source: Path) -> Path | None:
        try:
            return Path(importlib.util.cache_from_source(str(source))).with_suffix(".json")
        except NotImplementedError:  # an interpreter without bytecode files
            return None

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        current = isinstance(stored, dict) and stored.get("version") == self._version
        return stored["entries"] if current else {}
