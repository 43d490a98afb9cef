"""Images to score, by (prompt id, sample): image sets written by `reca sample`, or any folder of images.

Files of a folder are matched strictly by the names of the official layout; missing and unknown files are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from reca.core.images import decode
from reca.core.walk import entries
from reca.data.readers.folder import IMAGE_SUFFIXES
from reca.inference.imageset import Entry, ImageSet, png
from reca.inference.items import Prompt

Key = tuple[str, int]
Naming = Callable[[Prompt, int], str]
_LISTED = 20


class Pictures(Mapping[Key, bytes]):
    """Bytes of image files by (prompt id, sample), read lazily."""

    def __init__(self, readers: Mapping[Key, Callable[[], bytes]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, key: Key) -> bytes:
        return self._readers[key]()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class Cropped(Mapping[Key, bytes]):
    """Images with black borders cropped, as BAGEL's evaluation saves them (a defect; reference/benchmarks.md 1).

    An image without a border, or one that is entirely black, is returned byte for byte. `changed` has the keys of the
    images cropped so far.
    """

    def __init__(self, pictures: Mapping[Key, bytes]) -> None:
        self._pictures = pictures
        self.changed: set[Key] = set()

    def __getitem__(self, key: Key) -> bytes:
        data = self._pictures[key]
        image = decode(data, name=f"{key[0]}, sample {key[1]}").convert("RGB")
        box = image.getbbox()
        if box is None or box == (0, 0, *image.size):
            return data
        self.changed.add(key)
        return png(image.crop(box))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __contains__(self, key: object) -> bool:
        return key in self._pictures


def of_sets(paths: Iterable[Path]) -> Pictures:
    """The images of one or several image sets (shards); ValueError if two contain the same key."""
    readers: dict[Key, Callable[[], bytes]] = {}
    for path in paths:
        pictures = ImageSet(path)
        for entry in pictures:
            if entry in readers:
                raise ValueError(
                    f"{path}: {entry.stem} is also in another shard; give each shard once"
                )
            readers[entry] = _reader(pictures, entry)
    return Pictures({(key, sample): reader for (key, sample), reader in readers.items()})


def _reader(pictures: ImageSet, entry: Entry) -> Callable[[], bytes]:
    return lambda: pictures.png(entry.key, entry.sample)


def of_folder(
    folder: Path, items: Sequence[Prompt], samples: int, naming: Naming
) -> tuple[Pictures, list[str], list[str]]:
    """The images of a folder in the official layout, the missing names, and the unknown ones.

    The suffix may be that of any supported image format; two files that differ only in the suffix are a ValueError.
    Other files (metadata) are ignored.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    found = _by_stem(folder)
    wanted = {_stem(naming(item, k)): (item.id, k) for item in items for k in range(samples)}
    if len(wanted) != len(items) * samples:
        raise ValueError(
            f"{folder}: the layout gives two images the same name; prompt ids must be unique"
        )
    readers = {wanted[stem]: found[stem].read_bytes for stem in wanted if stem in found}
    missing = [
        naming(item, k)
        for item in items
        for k in range(samples)
        if _stem(naming(item, k)) not in found
    ]
    foreign = sorted(str(found[s].relative_to(folder)) for s in found if s not in wanted)
    return Pictures(readers), missing, foreign


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(entries(folder, hidden=False)):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            stem = _stem(path.relative_to(folder).as_posix())
            if stem in found:
                raise ValueError(f"{path}: {found[stem].name} exists as well; keep one of them")
            found[stem] = path
    return found


def _stem(name: str) -> str:
    """A relative name without its suffix; numeric parts are normalised, so that 0 equals 00000."""
    parts = name.rsplit(".", 1)[0].split("/")
    return "/".join(str(int(part)) if part.isdecimal() else part for part in parts)


def demand(
    folder: Path, missing: Sequence[str], foreign: Sequence[str], expected: int, partial: bool
) -> list[str]:
    """The problems of a folder as text; ValueError for missing files unless a partial score was requested."""
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {expected} images missing: {_names(missing)}")
    if foreign:
        problems.append(f"{len(foreign)} images not in the benchmark: {_names(foreign)}")
    if missing and not partial:
        raise ValueError(f"{folder}: {'; '.join(problems)}; complete them, or pass --partial")
    return problems


def _names(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ---- several images in one file --------------------------------------------------------------------
TILES = 4  # of a 2 x 2 grid: top left, top right, bottom left, bottom right


def is_grid(
    folder: Path, items: Sequence[Prompt], naming: Naming, grid: Callable[[Prompt], str]
) -> bool:
    """Whether a folder contains one 2 x 2 grid per prompt; ValueError if it also contains single images."""
    found = set(_by_stem(folder)) if folder.is_dir() else set()
    grids = [grid(item) for item in items if _stem(grid(item)) in found]
    single = [naming(i, k) for i in items for k in range(TILES) if _stem(naming(i, k)) in found]
    if grids and single:
        raise ValueError(
            f"{folder}: {grids[0]} is named as a grid of four images, {single[0]} as a single image; "
            "put the two layouts into separate folders"
        )
    return bool(grids)


def of_grids(
    folder: Path, items: Sequence[Prompt], samples: int, grid: Callable[[Prompt], str]
) -> tuple[Pictures, list[str], list[str]]:
    """Like `of_folder`, for one 2 x 2 grid per prompt, of which the first `samples` tiles are used."""
    if not 1 <= samples <= TILES:
        raise ValueError(
            f"{folder}: a grid has {TILES} images, not {samples}; give --images from 1 to {TILES}"
        )
    whole, missing, foreign = of_folder(folder, items, 1, lambda item, _: grid(item))
    names = {item.id: grid(item) for item in items}
    tiles = {
        (name, k): (lambda name=name, k=k: tile(whole[name, 0], k, str(folder / names[name])))
        for name, _ in whole
        for k in range(samples)
    }
    return Pictures(tiles), missing, foreign


def tile(data: bytes, place: int, name: str) -> bytes:
    """One tile of a grid as PNG bytes, pixels unchanged; ValueError if a side of the grid is odd."""
    from reca.core.images import decode

    image = decode(data, name=name)
    wide, high = image.width // 2, image.height // 2
    if (2 * wide, 2 * high) != image.size:
        raise ValueError(
            f"{name}: {image.width} x {image.height} pixels cannot be a 2 x 2 grid; both sides must be even"
        )
    left, top = place % 2 * wide, place // 2 * high
    return png(image.crop((left, top, left + wide, top + high)))


def samples_in(folder: Path, items: Sequence[Prompt], naming: Naming) -> int:
    """The largest number of images of any prompt in a folder, at least 1."""
    found = set(_by_stem(folder)) if folder.is_dir() else set()
    most = 0
    for item in items:
        k = 0
        while _stem(naming(item, k)) in found and (k == 0 or naming(item, k) != naming(item, 0)):
            k += 1
        most = max(most, k)
    return max(1, most)
