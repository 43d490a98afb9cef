"""A folder of image files, with captions beside them if there are any."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from reca.data.hashes import hash_files
from reca.data.samples import Sample
from reca.images import UnreadableImage

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_SUFFIXES = (".txt", ".json")
LEDGER = ".reca-hashes.json"


class FolderDataset:
    """Images under a folder and its subfolders, in natural order of their paths (2 before 10).

    A caption is `<stem>.txt`, or the string `caption` of `<stem>.json`, whose other keys become
    `extra`. Hidden files are not read; other files are listed in `ignored`.
    """

    def __init__(self, root: Path, caption: str = "caption") -> None:
        self.root = root
        self.caption = caption
        files = sorted(
            (path for path in root.rglob("*") if path.is_file() and not _hidden(path, root)),
            key=lambda path: natural_key(path.relative_to(root).as_posix()),
        )
        self.images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not self.images:
            raise ValueError(f"{root}: no image ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        sidecars = {path.with_suffix(suffix) for path in self.images for suffix in CAPTION_SUFFIXES}
        self.sidecars = [path for path in files if path in sidecars]
        used = {*self.images, *self.sidecars}
        self.ignored = [path for path in files if path not in used]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """The image at `index`, with its caption."""
        told = self.texts(index)
        return replace(told, image=read_file(self.images[index], told.id))

    def texts(self, index: int) -> Sample:
        """The caption of the image at `index`."""
        path = self.images[index]
        caption, extra = self._sidecar(path)
        name = path.relative_to(self.root).as_posix()
        return Sample(id=name, caption=caption, extra=extra)

    def fingerprint(self) -> str:
        """Hash of all images and captions with their names."""
        files = [path.relative_to(self.root).as_posix() for path in self.images + self.sidecars]
        return hash_files(self.root, [*files], LEDGER)

    def _sidecar(self, path: Path) -> tuple[str | None, dict]:
        text, record = (path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
        caption = text.read_text(encoding="utf-8").strip() if text.is_file() else None
        if not record.is_file():
            return caption, {}
        try:
            extra = dict(json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as fault:
            raise ValueError(f"{record}: expected a JSON object ({fault})") from fault
        told = extra.pop(self.caption, None)
        return caption if caption is not None else told, extra


def read_file(path: Path, name: str) -> bytes:
    """The bytes of an image file; `UnreadableImage` if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise UnreadableImage(name, f"cannot read the file ({fault.strerror})") from fault


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key in which runs of digits compare as numbers; equal keys never belong to two names."""
    parts = re.split(r"([0-9]+)", text)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
    return [*key, (2, 0, text)]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
