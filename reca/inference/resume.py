"""Finished work of an unfinished stage: images with their sidecars, and rows of answers or findings.

Both lie in a stage's work folder and are written one by one, so a killed run loses only what it was making.
Sidecars and lines are sealed (`reca.core.sealed`): what the disk damaged is named, and made again.
"""

from __future__ import annotations

import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_bytes, write_atomic
from reca.core.sealed import begins_like, seal, unseal
from reca.inference.imageset import Entry, named_entry, png

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, Any]
_log = logging.getLogger(__name__)


class ResumableImages:
    """Images `<key>/<index>.png`, each finished by its sidecar `<key>/<index>.json`, which is written last.

    The sidecar has the recipe, the file's sha256 and, where one generator draws image after image, its
    state after this one. A file that the disk lost or truncated does not have the hash, so nothing waits for the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, entry: Entry, recipe: Mapping[str, Any]) -> bool:
        """Whether this very image is there, whole and drawn by this very recipe."""
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
        """Keep a finished image; ValueError where its key is none or the disk is full."""
        data = png(image)
        sidecar: Row = {"recipe": recipe, "sha256": sha256_bytes(data)}
        if state is not None:
            sidecar["state"] = b64encode(state).decode()
        write_atomic(self._path(entry, "png"), data, durable=False)
        write_atomic(self._path(entry, "json"), seal(sidecar), durable=False)

    def png(self, entry: Entry) -> bytes:
        """The file of a finished image."""
        return self._path(entry, "png").read_bytes()

    def state(self, entry: Entry) -> bytes:
        """The generator's state after a finished image."""
        sidecar = self._sidecar(entry)
        assert sidecar is not None and "state" in sidecar, "only for finished pictures in turn"
        return b64decode(sidecar["state"])

    def _sidecar(self, entry: Entry) -> Row | None:
        path = self._path(entry, "json")
        if not path.is_file():
            return None
        found = unseal(path.read_bytes())
        if found is None:
            _log.warning("%s: damaged; its picture is drawn again", path)
        return found

    def _path(self, entry: Entry, ending: str) -> Path:
        named_entry(*entry, self.folder)
        return self.folder / f"{entry.stem}.{ending}"


class ResumableRows:
    """Rows by key in an append-only file: a line counts when its end is on the disk and its seal holds.

    Other lines stay where they are, are named in the log, and their rows are made again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        *lines, torn = data.split(b"\n")
        if torn:
            _log.warning("%s: an unfinished last line is dropped and made again", self.path)
        for number, line in enumerate(lines, 1):
            entry = unseal(line)
            if entry is None:
                _log.warning(
                    "%s, line %d: damaged, or of an older reca; made again", self.path, number
                )
            else:
                self.rows[entry["key"]] = entry["rows"]
        first = lines[0] if lines else torn
        if not self.rows and not begins_like(first, "key"):
            raise ValueError(f"{self.path}: not rows of ours ({first[:40]!r}); remove the file")
        os.truncate(self.path, data.rfind(b"\n") + 1)

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
                file.write(seal({"key": key, "rows": list(rows)}).encode() + b"\n")
                file.flush()
            os.fsync(file.fileno())
