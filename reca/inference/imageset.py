"""A set of generated images, each with the recipe it was drawn by: a tar file or a folder.

Entry (key, index) is `<key>/<index>.png` with `<key>/<index>.json` next to it, the layout that
WebDataset reads. The key is a prompt's id, under a guidance level where guidance is swept. Equal
entries give equal bytes: no times, users or machines are stored.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from PIL import Image

from reca.core.artifacts import fsync_directory
from reca.core.documents import json_object
from reca.core.images import decode
from reca.core.ownership import check_place, files_in
from reca.core.staging import new_file, new_folder

Container = Literal["tar", "folder"]
_KEY = re.compile(r"[A-Za-z0-9_.+=@-]+(/[A-Za-z0-9_.+=@-]+)*")
_MEMBER = re.compile(r"(?P<key>.+)/(?P<index>\d{4,})\.(?P<kind>png|json)")
_NAMED = 5  # entries that an error message lists


class Entry(NamedTuple):
    """One image's place: which prompt, and which of its samples."""

    key: str
    sample: int

    @property
    def stem(self) -> str:
        """The name of its files without the ending."""
        return f"{self.key}/{self.sample:04d}"


def named_entry(key: str, index: int, path: Path) -> Entry:
    """The entry of a key; ValueError, with the set's path, for a key that is no safe name."""
    if not _KEY.fullmatch(key) or not set(key.split("/")).isdisjoint({".", ".."}):
        raise ValueError(f"{path}: {key!r} is no key; use letters, digits and _.+=@- only")
    return Entry(key, index)


def png(image: Image.Image) -> bytes:
    """PNG bytes of an image's pixels alone: no times, no text."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, format="PNG")
    return buffer.getvalue()


class ImageSetWriter:
    """Write a set; it appears under its name when the `with` block ends well, or not at all."""

    def __init__(self, path: str | Path, container: Container = "tar") -> None:
        self.path, self.container = Path(path), container
        self.entries: set[Entry] = set()

    def __enter__(self) -> ImageSetWriter:
        with self._named():
            self._begin()
        return self

    def _begin(self) -> None:
        if self.container == "folder":
            check_place("folder", self.path, [])
            _check_replaced(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{self.path.name}.partial-"
        if self.container == "folder":
            self._partial = new_folder(self.path.parent, prefix)
            return
        descriptor, self._partial = new_file(self.path.parent, prefix)
        self._file = os.fdopen(descriptor, "wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Make the disk's errors name the set."""
        try:
            yield
        except OSError as problem:
            reason = problem.strerror or str(problem)
            remedy = "free space or choose a writable folder"
            raise ValueError(
                f"{self.path}: cannot write pictures ({reason}); {remedy}"
            ) from problem

    def add(
        self, key: str, index: int, image: Image.Image | bytes, recipe: Mapping[str, Any]
    ) -> None:
        """Add one image (or its PNG bytes); ValueError for a key that is odd or taken."""
        entry = named_entry(key, index, self.path)
        if entry in self.entries:
            raise ValueError(f"{self.path}: {entry.stem} is written twice; prompt ids must differ")
        self.entries.add(entry)
        data = image if isinstance(image, bytes) else png(image)
        with self._named():
            self._write(f"{entry.stem}.png", data)
            self._write(f"{entry.stem}.json", (json.dumps(recipe, sort_keys=True) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        if self.container == "folder":
            target = self._partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            return
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        self._tar.addfile(member, io.BytesIO(data))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._named():
                if self.container == "tar":
                    self._close_tar(kind is None)
                if kind is None:
                    self._publish()
        finally:
            _remove(self._partial)

    def _close_tar(self, whole: bool) -> None:
        with self._file:
            if whole:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())

    def _publish(self) -> None:
        is_folder = self.container == "folder"
        if is_folder:
            _check_replaced(self.path)
            _remove(self.path)
        os.replace(self._partial, self.path)
        fsync_directory(self.path.parent)


def _check_replaced(folder: Path) -> None:
    """ValueError where a folder holds a file that no set has."""
    for name in files_in(folder):
        if not re.fullmatch(r".+/\d{4,}\.(png|json)", name):
            raise ValueError(
                f"{folder}: holds {name}, which is not of a set of pictures; name another folder"
            )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class ImageSet:
    """Read a set, in the order it was written (a folder: in the order of names).

    Raises:
        ValueError: nothing there, not a tar file, a foreign or unsafe member, an entry that is
            there twice, or an image without its recipe.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"{path}: no set of pictures here; run `reca sample` first")
        self._places = _folder_places(self.path) if self.path.is_dir() else _tar_places(self.path)
        self.entries = [entry for entry, kind in self._places if kind == "png"]
        recipes = {entry for entry, kind in self._places if kind == "json"}
        halves = sorted(recipes.symmetric_difference(self.entries))
        if halves:
            raise ValueError(f"{path}: {halves[0].stem} its image or its recipe is missing")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __contains__(self, entry: object) -> bool:
        return (entry, "png") in self._places

    def image(self, key: str, index: int = 0) -> Image.Image:
        """An image (RGB); ValueError where there is none or it is damaged."""
        return decode(self.png(key, index), name=f"{self.path}: {Entry(key, index).stem}")

    def png(self, key: str, index: int = 0) -> bytes:
        """An image's file."""
        return self._read(Entry(key, index), "png")

    def recipe(self, key: str, index: int = 0) -> dict[str, Any]:
        """How an image was drawn."""
        entry = Entry(key, index)
        try:
            return json_object(self._read(entry, "json"), "the recipe")
        except ValueError as problem:
            raise ValueError(f"{self.path}: {entry.stem}.json is damaged ({problem})") from problem

    def check(self, expected: Iterable[Entry]) -> None:
        """ValueError unless exactly the expected images are here; names missing and unexpected ones."""
        wanted, found = set(expected), set(self.entries)
        for problem, entries in (("missing", wanted - found), ("not expected", found - wanted)):
            if entries:
                names = ", ".join(entry.stem for entry in sorted(entries)[:_NAMED])
                raise ValueError(
                    f"{self.path}: {len(entries)} pictures {problem}, for instance {names}"
                )

    def _read(self, entry: Entry, kind: str) -> bytes:
        place = self._places.get((entry, kind))
        if place is None:
            raise ValueError(
                f"{self.path}: no {entry.stem}.{kind} in this set of {len(self)} pictures"
            )
        path, offset, size = place
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


# where an entry's bytes lie: file, offset, length
_Places = dict[tuple[Entry, str], tuple[Path, int, int]]


def _folder_places(path: Path) -> _Places:
    places: _Places = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            entry, kind = _parsed(file.relative_to(path).as_posix(), path)
            places[entry, kind] = (file, 0, file.stat().st_size)
    return places


def _tar_places(path: Path) -> _Places:
    places: _Places = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                entry, kind = _parsed(member.name, path)
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{path}: {member.name} is not a plain file")
                if (entry, kind) in places:
                    raise ValueError(f"{path}: {member.name} is there twice")
                places[entry, kind] = (path, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as problem:
        raise ValueError(
            f"{path}: not a whole tar file ({problem}); draw the pictures again"
        ) from problem
    return places


def _parsed(name: str, path: Path) -> tuple[Entry, str]:
    found = _MEMBER.fullmatch(name)
    if found is None or not _KEY.fullmatch(found["key"]) or ".." in found["key"].split("/"):
        raise ValueError(f"{path}: {name!r} is no picture and no recipe")
    return Entry(found["key"], int(found["index"])), found["kind"]
