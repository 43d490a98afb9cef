"""A folder of image files, optionally with captions next to them."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reca.core.artifacts import MANIFEST, RUN
from reca.core.images import SUFFIXES
from reca.core.unreadable import UnreadableImage, UnreadableText
from reca.core.walk import entries
from reca.data.dataset import NAMES_SHOWN, Sample
from reca.data.readers import metadata
from reca.data.readers.hashes import hash_files
from reca.data.readers.metadata import Metadata
from reca.data.readers.names import check_unicode
from reca.data.readers.text import caption_in_record, record_in_file, text_in_file

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in SUFFIXES)
CAPTION_SUFFIXES = (".txt", ".json")
_IGNORED = "neither image nor caption"


@dataclass(frozen=True)
class Picture:
    """One image of a folder: its relative path, the files with its stem, and its row of `metadata.jsonl`."""

    name: str
    sidecars: dict[str, list[Path]] = field(default_factory=dict)  # suffix -> files
    row: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None  # a line of metadata.jsonl without an image


class FolderDataset:
    """Images under a folder and its subfolders, in natural order of their paths (2 before 10).

    A caption is `<stem>.txt`, or the text under `caption` in `<stem>.json`, or the text under `caption` or `text` in
    the image's line of `metadata.jsonl`; the first of these that exists. Other keys become `extra`. Suffixes are
    case-insensitive. Hidden files are not read; other files are listed in `ignored` and logged, as are links to
    folders, which are not followed, and broken links.
    """

    def __init__(self, root: Path, caption: str = "caption") -> None:
        self.root = root
        self.caption = caption
        below = sorted(
            entries(root, hidden=False),
            key=lambda path: natural_key(path.relative_to(root).as_posix()),
        )
        files = [path for path in below if path.is_file()]
        self.not_files = [path for path in below if not path.is_file() and not _walked(path)]
        self.tables = [path for path in files if path.name.lower() == metadata.NAME]
        described = Metadata()
        for path in self.tables:
            described.read(path, root)
        self.pictures = self._pictures(files, described)
        self.sidecars = [
            path
            for picture in self.pictures
            for found in picture.sidecars.values()
            for path in found
        ]
        used = {root / picture.name for picture in self.pictures}
        used |= {*self.sidecars, *self.tables, root / MANIFEST, root / RUN}
        self.ignored = [path for path in files if path not in used]
        if not self.pictures:
            found = f"; it contains {_kinds(self.ignored)}" if self.ignored else ""
            raise ValueError(
                f"{root}: no image ({', '.join(IMAGE_SUFFIXES)}) in this folder{found}"
            )
        if self.ignored:
            log.warning("%s: %d files are not read: %s", root, len(self.ignored), self._named())
        for reason, names in self.left_out.items():
            if reason != _IGNORED:
                shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if names[NAMES_SHOWN:] else "")
                log.warning("%s: %d %s are not read: %s", root, len(names), reason, shown)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        """The image at `index`, with its caption."""
        text_only = self.texts(index)
        return replace(text_only, image=read_file(self.root / text_only.id, text_only.id))

    def texts(self, index: int) -> Sample:
        """The caption of the image at `index`."""
        picture = self.pictures[index]
        check_unicode(picture.name)
        if picture.fault is not None:
            raise UnreadableText(picture.name, picture.fault)
        text, record = (_only(picture, suffix) for suffix in CAPTION_SUFFIXES)
        row = dict(picture.row)
        caption = caption_in_record(row, (self.caption, "text"), picture.name, metadata.NAME)
        if record is not None:
            sidecar = record_in_file(_bytes(record, picture), picture.name, record.name)
            own = caption_in_record(sidecar, (self.caption,), picture.name, record.name)
            caption, row = caption if own is None else own, {**row, **sidecar}
        if text is not None:
            caption = text_in_file(_bytes(text, picture), picture.name, text.name)
        return Sample(id=picture.name, caption=caption, extra=row)

    def fingerprint(self) -> str:
        """Hash of all images and captions, including their names."""
        there = [self.root / picture.name for picture in self.pictures]
        there = [path for path in there if path.is_file()]  # metadata.jsonl may name others
        files = [*there, *dict.fromkeys(self.sidecars), *self.tables]
        return hash_files(self.root, [f.relative_to(self.root).as_posix() for f in files])

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the files that are not read, by reason."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.ignored:
            found[_IGNORED].append(path.relative_to(self.root).as_posix())
        for path in self.not_files:
            found[_what_it_is(path)].append(path.relative_to(self.root).as_posix())
        return dict(found)

    def _pictures(self, files: list[Path], described: Metadata) -> list[Picture]:
        """The image files, those named by a `metadata.jsonl`, and its lines that name no image."""
        sidecars: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for path in files:
            if path.suffix.lower() in CAPTION_SUFFIXES:
                sidecars[path.with_suffix("")][path.suffix.lower()].append(path)
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        names = dict.fromkeys(path.relative_to(self.root).as_posix() for path in images)
        rows = described.rows
        pictures = [
            Picture(
                name, dict(sidecars.get((self.root / name).with_suffix(""), {})), rows.get(name, {})
            )
            for name in names | dict.fromkeys(rows)
        ]
        pictures += [Picture(place, fault=fault) for place, fault in described.faults.items()]
        return sorted(pictures, key=lambda picture: natural_key(picture.name))

    def _named(self) -> str:
        names = [path.relative_to(self.root).as_posix() for path in self.ignored[:NAMES_SHOWN]]
        more = ", ..." if len(self.ignored) > NAMES_SHOWN else ""
        return f"{_kinds(self.ignored)} ({', '.join(names)}{more})"


def read_file(path: Path, name: str) -> bytes:
    """The bytes of an image file; `UnreadableImage` if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise UnreadableImage(name, f"cannot read the file ({fault.strerror})") from fault


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Natural sort key: runs of digits compare as numbers; different names have different keys."""
    parts = re.split(r"([0-9]+)", text)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
    return [*key, (2, 0, text)]


def _walked(path: Path) -> bool:
    """Whether a folder is inside the root without following links to folders."""
    return path.is_dir() and not path.is_symlink()


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return "links to folders"
    return "special files" if path.exists() else "links to nothing"


def _only(picture: Picture, suffix: str) -> Path | None:
    """The sidecar with this suffix, or None; two that differ only in case are rejected."""
    found = picture.sidecars.get(suffix, [])
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UnreadableText(picture.name, f"two captions, {names}")
    return found[0] if found else None


def _bytes(sidecar: Path, picture: Picture) -> bytes:
    try:
        return sidecar.read_bytes()
    except OSError as fault:
        reason = f"cannot read {sidecar.name} ({fault.strerror})"
        raise UnreadableText(picture.name, reason) from fault


def _kinds(paths: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without ending" for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(NAMES_SHOWN))
