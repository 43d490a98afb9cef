"""Finished work of an unfinished stage: pictures with their sidecars, and rows of answers or findings.

Both lie in a stage's work folder and are written one by one, so a killed run loses only what it was making.
"""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.imageset import Entry, named_entry, png
from reca.records import sha256_bytes, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, Any]
_log = logging.getLogger(__name__)


class KeptPictures:
    """Pictures `<key>/<index>.png`, each finished by its sidecar `<key>/<index>.json`, which is written last.

    The sidecar has the recipe, the file's sha256 and, where one generator draws picture after picture, its
    state behind this one. A file that the disk lost or cut does not have the hash, so nothing waits for the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, entry: Entry, recipe: Mapping[str, Any]) -> bool:
        """Whether this very picture is there, whole and drawn by this very recipe."""
        sidecar = self._sidecar(entry)
        if sidecar is None or sidecar.get("recipe") != recipe:
            return False
        try:
            whole = sha256_bytes(self.png(entry)) == sidecar.get("sha256")
        except OSError:
            whole = False
        if not whole:
            _log.warning("%s: damaged; it is drawn again", self._path(entry, "png"))
        return whole

    def put(
        self, entry: Entry, image: Image, recipe: Mapping[str, Any], state: bytes | None = None
    ) -> None:
        """Keep a finished picture; ValueError where its key is none or the disk is full."""
        data = png(image)
        sidecar: Row = {"recipe": recipe, "sha256": sha256_bytes(data)}
        if state is not None:
            sidecar["state"] = b64encode(state).decode()
        write_atomic(self._path(entry, "png"), data, durable=False)
        write_atomic(self._path(entry, "json"), json.dumps(sidecar, sort_keys=True), durable=False)

    def png(self, entry: Entry) -> bytes:
        """The file of a finished picture."""
        return self._path(entry, "png").read_bytes()

    def state(self, entry: Entry) -> bytes:
        """The generator's state behind a finished picture."""
        sidecar = self._sidecar(entry)
        assert sidecar is not None and "state" in sidecar, "only for finished pictures in turn"
        return b64decode(sidecar["state"])

    def _sidecar(self, entry: Entry) -> Row | None:
        path = self._path(entry, "json")
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _path(self, entry: Entry, ending: str) -> Path:
        named_entry(*entry, self.folder)
        return self.folder / f"{entry.stem}.{ending}"


class KeptRows:
    """Rows by key in an append-only file: a line counts when its end is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                entry = self._entry(line)
                self.rows[entry["key"]] = entry["rows"]
                whole += len(line) + 1
            os.truncate(path, whole)

    def _entry(self, line: bytes) -> Row:
        try:
            entry: Row = json.loads(line)
            if isinstance(entry["key"], str) and isinstance(entry["rows"], list):
                return entry
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{self.path}: not rows of ours ({line[:40]!r}); remove the file")

    def of(self, key: str, rows: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a key, made now unless an earlier sitting made them."""
        if key not in self.rows:
            self.add({key: rows()})
        return self.rows[key]

    def add(self, found: Mapping[str, Sequence[Row]]) -> None:
        """Keep the rows of several keys, a line each."""
        self.rows |= {key: list(rows) for key, rows in found.items()}
        with open(self.path, "ab") as file:
            for key, rows in found.items():
                line = json.dumps({"key": key, "rows": list(rows)}, sort_keys=True)
                file.write(line.encode() + b"\n")
                file.flush()
            os.fsync(file.fileno())
