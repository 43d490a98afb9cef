"""Finished work of an unfinished stage: images with sidecars, and rows of answers or observations.

Both are in a stage's work folder and written one by one, so a killed run loses only its current batch. Sidecars and
lines are sealed (`reca.core.sealed`): damaged ones are reported and computed again.
"""

from __future__ import annotations

import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_bytes
from reca.core.atomic import write_atomic
from reca.core.sealed import begins_like, seal, unseal
from reca.inference.imageset import Entry, named_entry, png

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, Any]
_log = logging.getLogger(__name__)


def of_code(work: Path, code: str) -> Path:
    """The folder inside `work` for one version of the code, by its fingerprint ("" if unknown)."""
    return work / (code[:16] or "any")


class ResumableImages:
    """Images `<key>/<index>.png`, each completed by its sidecar `<key>/<index>.json`, which is written last.

    The sidecar has the recipe, the file's sha256 and, if one generator is used for several images, its state after
    this one. A lost or truncated file does not match the hash, so no fsync is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, entry: Entry, recipe: Mapping[str, Any]) -> bool:
        """Whether this image exists, is intact, and has this recipe."""
        sidecar = self._sidecar(entry)
        if sidecar is None or sidecar.get("recipe") != recipe:
            return False
        try:
            intact = sha256_bytes(self.png(entry)) == sidecar.get("sha256")
        except OSError:
            intact = False
        if not intact:
            _log.warning("%s: damaged; it is generated again", self._path(entry, "png"))
        return intact

    def put(
        self, entry: Entry, image: Image, recipe: Mapping[str, Any], state: bytes | None = None
    ) -> None:
        """Save a finished image; ValueError for an invalid key or a full disk."""
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
        assert sidecar is not None and "state" in sidecar, "only for finished images in sequence"
        return b64decode(sidecar["state"])

    def _sidecar(self, entry: Entry) -> Row | None:
        path = self._path(entry, "json")
        if not path.is_file():
            return None
        found = unseal(path.read_bytes())
        if found is None:
            _log.warning("%s: damaged; its image is generated again", path)
        return found

    def _path(self, entry: Entry, ending: str) -> Path:
        named_entry(*entry, self.folder)
        return self.folder / f"{entry.stem}.{ending}"


class ResumableRows:
    """Rows by key in an append-only file: a line is valid if it is complete and its seal matches.

    Other lines stay in the file, are reported in the log, and their rows are computed again.
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
            _log.warning("%s: dropping an unfinished last line, which is computed again", self.path)
        for number, line in enumerate(lines, 1):
            entry = unseal(line)
            if entry is None:
                _log.warning(
                    "%s, line %d: damaged, or of an older reca; computed again", self.path, number
                )
            else:
                self.rows[entry["key"]] = entry["rows"]
        first = lines[0] if lines else torn
        if not self.rows and not begins_like(first, "key"):
            raise ValueError(f"{self.path}: not written by reca ({first[:40]!r}); remove the file")
        os.truncate(self.path, data.rfind(b"\n") + 1)

    def of(self, key: str, rows: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a key, computed now unless an earlier run did."""
        if key not in self.rows:
            self.add({key: rows()})
        return self.rows[key]

    def add(self, found: Mapping[str, Sequence[Row]]) -> None:
        """Save the rows of several keys, one line each."""
        self.rows |= {key: list(rows) for key, rows in found.items()}
        with open(self.path, "ab") as file:
            for key, rows in found.items():
                file.write(seal({"key": key, "rows": list(rows)}).encode() + b"\n")
                file.flush()
            os.fsync(file.fileno())
