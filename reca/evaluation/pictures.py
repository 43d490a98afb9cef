"""Pictures to be scored, by (prompt id, sample): our own sets with their recipes, or anybody's folder.

A folder is matched strictly by the names of the official layout: what is missing is listed, and so is what
nobody asked for; nothing is matched by similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from reca.core.images import decode
from reca.data.readers.folder import IMAGE_SUFFIXES
from reca.inference.imageset import Entry, ImageSet, png
from reca.inference.items import Prompt

Key = tuple[str, int]
Naming = Callable[[Prompt, int], str]
_LISTED = 20


class Pictures(Mapping[Key, bytes]):
    """Bytes of picture files by (prompt id, sample), read when asked for."""

    def __init__(self, readers: Mapping[Key, Callable[[], bytes]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, key: Key) -> bytes:
        return self._readers[key]()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class Cropped(Mapping[Key, bytes]):
    """Pictures without their black border, as BAGEL's evaluation saves them (reference/benchmarks.md 1; a defect).

    A picture without one, and one that is black all over, stays byte for byte. `changed` has the keys of
    those that were cropped, as far as they were read.
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
    """The pictures of one or several sets of ours (shards); ValueError where two hold the same picture."""
    readers: dict[Key, Callable[[], bytes]] = {}
    for path in paths:
        pictures = ImageSet(path)
        for entry in pictures:
            if entry in readers:
                raise ValueError(f"{path}: {entry.stem} is in another shard too")
            readers[entry] = _reader(pictures, entry)
    return Pictures({(key, sample): reader for (key, sample), reader in readers.items()})


def _reader(pictures: ImageSet, entry: Entry) -> Callable[[], bytes]:
    return lambda: pictures.png(entry.key, entry.sample)


def of_folder(
    folder: Path, items: Sequence[Prompt], samples: int, naming: Naming
) -> tuple[Pictures, list[str], list[str]]:
    """The pictures of a folder in the official layout, the names that lack, and those not asked for.

    The ending may be that of any picture format we read; of two files that differ in it alone neither is
    taken (ValueError). Other files (metadata) are not looked at.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    found = _by_stem(folder)
    wanted = {_stem(naming(item, k)): (item.id, k) for item in items for k in range(samples)}
    if len(wanted) != len(items) * samples:
        raise ValueError(
            f"{folder}: the layout gives two pictures one name; prompt ids must differ"
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
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            stem = _stem(path.relative_to(folder).as_posix())
            if stem in found:
                raise ValueError(f"{path}: {found[stem].name} is there too; which one is it?")
            found[stem] = path
    return found


def _stem(name: str) -> str:
    """A relative name without its ending; parts that are all digits compare as numbers (0 is 00000)."""
    parts = name.rsplit(".", 1)[0].split("/")
    return "/".join(str(int(part)) if part.isdecimal() else part for part in parts)


def demand(
    folder: Path, missing: Sequence[str], foreign: Sequence[str], expected: int, partial: bool
) -> list[str]:
    """What to tell about a folder; ValueError unless all is there (or a partial score was asked for)."""
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {expected} pictures missing: {_names(missing)}")
    if foreign:
        problems.append(
            f"{len(foreign)} pictures that the benchmark does not know: {_names(foreign)}"
        )
    if missing and not partial:
        raise ValueError(f"{folder}: {'; '.join(problems)}; complete them, or pass --partial")
    return problems


def _names(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ---- several pictures in one file --------------------------------------------------------------------
TILES = 4  # of a 2 x 2 grid: top left, top right, bottom left, bottom right


def is_grid(
    folder: Path, items: Sequence[Prompt], naming: Naming, grid: Callable[[Prompt], str]
) -> bool:
    """Whether a folder holds one 2 x 2 grid per prompt; ValueError where it holds single files too."""
    found = set(_by_stem(folder)) if folder.is_dir() else set()
    grids = [grid(item) for item in items if _stem(grid(item)) in found]
    single = [naming(i, k) for i in items for k in range(TILES) if _stem(naming(i, k)) in found]
    if grids and single:
        raise ValueError(
            f"{folder}: {grids[0]} would be a grid of four pictures and {single[0]} one of them; "
            "score the two layouts from folders of their own"
        )
    return bool(grids)


def of_grids(
    folder: Path, items: Sequence[Prompt], samples: int, grid: Callable[[Prompt], str]
) -> tuple[Pictures, list[str], list[str]]:
    """As `of_folder`, from one 2 x 2 grid per prompt, of which the first `samples` tiles count."""
    if not 1 <= samples <= TILES:
        raise ValueError(f"{folder}: a grid has {TILES} pictures, not {samples}; see --images")
    whole, missing, foreign = of_folder(folder, items, 1, lambda item, _: grid(item))
    names = {item.id: grid(item) for item in items}
    tiles = {
        (name, k): (lambda name=name, k=k: tile(whole[name, 0], k, str(folder / names[name])))
        for name, _ in whole
        for k in range(samples)
    }
    return Pictures(tiles), missing, foreign


def tile(data: bytes, place: int, name: str) -> bytes:
    """One quarter of a grid as PNG bytes, its pixels untouched; ValueError for a grid of odd sides."""
    from reca.core.images import decode

    image = decode(data, name=name)
    wide, high = image.width // 2, image.height // 2
    if (2 * wide, 2 * high) != image.size:
        raise ValueError(f"{name}: {image.width} x {image.height} pixels are no 2 x 2 grid")
    left, top = place % 2 * wide, place // 2 * high
    return png(image.crop((left, top, left + wide, top + high)))


def samples_in(folder: Path, items: Sequence[Prompt], naming: Naming) -> int:
    """How many pictures per prompt a folder has: those of the prompt that has most; at least 1."""
    found = set(_by_stem(folder)) if folder.is_dir() else set()
    most = 0
    for item in items:
        k = 0
        while _stem(naming(item, k)) in found and (k == 0 or naming(item, k) != naming(item, 0)):
            k += 1
        most = max(most, k)
    return max(1, most)
