"""A set of generated images, each with its recipe, in a tar file or a folder.

Entry (key, index) is `<key>/<index>.png` with `<key>/<index>.json` next to it, the layout that
WebDataset reads. The key is a prompt's id, prefixed by a guidance level if guidance is swept. Equal
entries give equal bytes: no times, users or machines are stored.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from PIL import Image

from reca.core.atomic import disk_errors, replacing
from reca.core.documents import json_object
from reca.core.images import decode
from reca.core.ownership import check_place, files_in
from reca.core.staging import replacing_folder

Container = Literal["tar", "folder"]
_KEY = re.compile(r"[A-Za-z0-9_.+=@-]+(/[A-Za-z0-9_.+=@-]+)*")
_MEMBER = re.compile(r"(?P<key>.+)/(?P<index>\d{4,})\.(?P<kind>png|json)")
_NAMED = 5  # number of entries listed in an error message


class Entry(NamedTuple):
    """Identifies one image: its prompt and sample index."""

    key: str
    sample: int

    @property
    def stem(self) -> str:
        """The name of its files without suffix."""
        return f"{self.key}/{self.sample:04d}"


def named_entry(key: str, index: int, path: Path) -> Entry:
    """The entry for a key; ValueError, with the set's path, for an unsafe key."""
    if not _KEY.fullmatch(key) or not set(key.split("/")).isdisjoint({".", ".."}):
        raise ValueError(f"{path}: {key!r} is not a valid key; use letters, digits and _.+=@- only")
    return Entry(key, index)


def png(image: Image.Image) -> bytes:
    """PNG bytes of an image's pixels, without metadata."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, format="PNG")
    return buffer.getvalue()


class ImageSetWriter:
    """Writes a set atomically: it appears under its name if the `with` block succeeds."""

    def __init__(self, path: str | Path, container: Container = "tar") -> None:
        self.path, self.container = Path(path), container
        self.entries: set[Entry] = set()

    def __enter__(self) -> ImageSetWriter:
        with disk_errors(self.path, "write pictures"), ExitStack() as stack:
            if self.container == "folder":
                check_place("folder", self.path, [])
                _check_replaced(self.path)
                self._folder = stack.enter_context(replacing_folder(self.path))
                stack.push(self._check_again)
            else:
                file = stack.enter_context(replacing(self.path))
                self._tar = stack.enter_context(
                    tarfile.TarFile(file, mode="w", format=tarfile.PAX_FORMAT)
                )
            self._publishing = stack.pop_all()
        return self

    def _check_again(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            _check_replaced(self.path)

    def add(
        self, key: str, index: int, image: Image.Image | bytes, recipe: Mapping[str, Any]
    ) -> None:
        """Add one image (or its PNG bytes); ValueError for an invalid or duplicate key."""
        entry = named_entry(key, index, self.path)
        if entry in self.entries:
            raise ValueError(
                f"{self.path}: {entry.stem} is written twice; prompt ids must be unique"
            )
        self.entries.add(entry)
        data = image if isinstance(image, bytes) else png(image)
        with disk_errors(self.path, "write pictures"):
            self._write(f"{entry.stem}.png", data)
            self._write(f"{entry.stem}.json", (json.dumps(recipe, sort_keys=True) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        if self.container == "folder":
            target = self._folder / name
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
        with disk_errors(self.path, "write pictures"):
            self._publishing.__exit__(kind, error, trace)


def _check_replaced(folder: Path) -> None:
    """Raise ValueError for a folder with a file that does not belong to a set."""
    for name in files_in(folder):
        if not re.fullmatch(r".+/\d{4,}\.(png|json)", name):
            raise ValueError(
                f"{folder}: contains {name}, which is not part of an image set; choose another folder"
            )


class ImageSet:
    """Reads a set, in the order it was written (a folder: in the order of names).

    Raises:
        ValueError: missing, not a tar file, a foreign or unsafe member, a duplicate entry, or an
            image without its recipe.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"{path}: no image set here; run `reca sample` first")
        self._places = _folder_places(self.path) if self.path.is_dir() else _tar_places(self.path)
        self.entries = [entry for entry, kind in self._places if kind == "png"]
        recipes = {entry for entry, kind in self._places if kind == "json"}
        halves = sorted(recipes.symmetric_difference(self.entries))
        if halves:
            raise ValueError(f"{path}: the image or the recipe of {halves[0].stem} is missing")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __contains__(self, entry: object) -> bool:
        return (entry, "png") in self._places

    def image(self, key: str, index: int = 0) -> Image.Image:
        """An image (RGB); ValueError if it is missing or damaged."""
        return decode(self.png(key, index), name=f"{self.path}: {Entry(key, index).stem}")

    def png(self, key: str, index: int = 0) -> bytes:
        """The file content of an image."""
        return self._read(Entry(key, index), "png")

    def recipe(self, key: str, index: int = 0) -> dict[str, Any]:
        """The recipe of an image."""
        entry = Entry(key, index)
        try:
            return json_object(self._read(entry, "json"), "the recipe")
        except ValueError as problem:
            raise ValueError(f"{self.path}: {entry.stem}.json is damaged ({problem})") from problem

    def check(self, expected: Iterable[Entry]) -> None:
        """Raise ValueError unless exactly the expected images exist; it names missing and unexpected ones."""
        wanted, found = set(expected), set(self.entries)
        for problem, entries in (("missing", wanted - found), ("not expected", found - wanted)):
            if entries:
                names = ", ".join(entry.stem for entry in sorted(entries)[:_NAMED])
                raise ValueError(
                    f"{self.path}: {len(entries)} images {problem}, for instance {names}"
                )

    def _read(self, entry: Entry, kind: str) -> bytes:
        place = self._places.get((entry, kind))
        if place is None:
            raise ValueError(
                f"{self.path}: no {entry.stem}.{kind} in this set of {len(self)} images"
            )
        path, offset, size = place
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


# location of an entry's bytes: file, offset, length
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
                    raise ValueError(f"{path}: {member.name} occurs twice")
                places[entry, kind] = (path, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as problem:
        raise ValueError(
            f"{path}: not a complete tar file ({problem}); generate the images again"
        ) from problem
    return places


def _parsed(name: str, path: Path) -> tuple[Entry, str]:
    found = _MEMBER.fullmatch(name)
    if found is None or not _KEY.fullmatch(found["key"]) or ".." in found["key"].split("/"):
        raise ValueError(f"{path}: {name!r} is neither an image nor a recipe")
    return Entry(found["key"], int(found["index"])), found["kind"]
