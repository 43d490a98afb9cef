"""What somebody's images are, before anything is trained on them: counts, sizes, formats, captions, colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reca.core.artifacts import sha256_bytes
from reca.core.image_formats import SUFFIXES, format_of
from reca.core.images import decode
from reca.core.unreadable import UnreadableImage, UnreadableSample
from reca.data.dataset import NAMES_SHOWN, Dataset
from reca.data.formats import open_dataset
from reca.data.prefetch import in_order
from reca.data.readers.parquet import ParquetDataset

MOST = 10_000  # images that are decoded; of more, evenly spaced ones
SIDE = 64  # pixels of the copy whose colours are counted
GREY, FLAT = (
    2.0,
    2.0,
)  # grey levels: between channels of a grey image; of the deviation of a flat one
CAPTION_COLUMNS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class Look:
    """One image: format, size, caption; mean and deviation of each channel at `SIDE` pixels."""

    digest: str
    format: str
    size: tuple[int, int]
    caption: str | None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    is_grey: bool


@dataclass
class Survey:
    """What was found among `total` samples, of which `read` were decoded or refused."""

    total: int
    read: int = 0
    looks: list[Look] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def share_unreadable(self) -> float:
        """Unreadable samples among those read."""
        return len(self.unreadable) / max(self.read, 1)

    @property
    def without_caption(self) -> int:
        """Images without a caption among those read."""
        return sum(not look.caption for look in self.looks)

    def lines(self, resolution: int | None = None) -> Iterator[str]:
        """The report, line by line; with the side of a model's images also how many are smaller."""
        some = (
            f", of which {self.read:,} evenly spaced ones were read"
            if self.read < self.total
            else ""
        )
        yield f"{self.total:,} images{some}; {len(self.unreadable)} unreadable"
        yield from (f"  {name}: {reason}" for name, reason in self.unreadable[:NAMES_SHOWN])
        for reason, names in self.left_out.items():
            yield f"{len(names)} {reason}, not read: {', '.join(names[:NAMES_SHOWN])}"
        if not self.looks:
            return
        yield f"formats: {_counted(look.format for look in self.looks)}"
        yield from self._sizes(resolution)
        yield from self._captions()
        yield from self._colours()
        if doubles := len(self.looks) - len({look.digest for look in self.looks}):
            yield f"duplicates: {doubles} files have the bytes of another one"

    def _sizes(self, resolution: int | None) -> Iterator[str]:
        short = sorted(min(look.size) for look in self.looks)
        ratios = sorted(max(look.size) / min(look.size) for look in self.looks)
        yield (
            f"sizes: short side {short[0]} to {short[-1]} pixels, median {short[len(short) // 2]}; long to short side "
            f"at most {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}"
        )
        if resolution is not None and (small := sum(side < resolution for side in short)):
            yield f"  {small} are smaller than the model's {resolution} pixels and are enlarged"

    def _captions(self) -> Iterator[str]:
        words = sorted(len(look.caption.split()) for look in self.looks if look.caption is not None)
        if not words:
            yield "captions: none; RecA needs none, the control arm sft and the task t2i do"
            return
        yield (
            f"captions: {len(words)} of {len(self.looks)} images, {words[0]} to {words[-1]} words, median "
            f"{words[len(words) // 2]}"
        )

    def _colours(self) -> Iterator[str]:
        mean = np.mean([look.mean for look in self.looks], axis=0)
        deviation = np.mean([look.deviation for look in self.looks], axis=0)
        shown = ", ".join(
            f"{name} {m:.0f} ± {d:.0f}" for name, m, d in zip("RGB", mean, deviation, strict=True)
        )
        grey = sum(look.is_grey for look in self.looks)
        flat = sum(max(look.deviation) < FLAT for look in self.looks)
        yield f"colours (0 to 255, mean ± deviation within images): {shown}; {grey} grey, {flat} of one colour"


def kind_of(path: Path) -> str:
    """The data kind of a path: `parquet`, `tar` or `folder`. ValueError if it is none, or more than one."""
    if not path.exists():
        raise ValueError(
            f"{path}: no such file or folder; give images, tar shards or parquet files"
        )
    suffixes = {path.suffix.lower()} if path.is_file() else _suffixes(path)
    kinds = {
        "parquet": ".parquet" in suffixes,
        "tar": ".tar" in suffixes,
        "folder": path.is_dir() and not suffixes.isdisjoint(f".{s}" for s in SUFFIXES),
    }
    found = [kind for kind, there in kinds.items() if there]
    if len(found) != 1:
        there = " and ".join(found) or ", ".join(sorted(suffixes - {""})) or "nothing"
        raise ValueError(
            f"{path}: holds {there}; give a folder of images, of *.tar shards or of *.parquet files, or one such file"
        )
    return found[0]


def open_images(path: Path) -> tuple[Dataset, str, dict[str, Any]]:
    """A data set of images, its kind and its reader's options: a caption column is found by its usual names.

    ValueError for tables without a column of images.
    """
    kind = kind_of(path)
    dataset = open_dataset(kind, path)
    if not isinstance(dataset, ParquetDataset):
        return dataset, kind, {}
    if "image" not in dataset.columns:
        raise ValueError(
            f"{path}: has no column 'image', but {', '.join(dataset.extra)}; rename the column of the images"
        )
    for column in CAPTION_COLUMNS:
        try:
            return open_dataset(kind, path, caption=column), kind, {"caption": column}
        except ValueError as fault:
            if "column" not in str(fault):
                raise
    return dataset, kind, {}


def survey(dataset: Dataset, workers: int = 4, most: int = MOST) -> Survey:
    """Read images (all, or `most` evenly spaced ones); what cannot be read is counted, not raised."""
    total = len(dataset)
    chosen = range(total) if total <= most else [i * total // most for i in range(most)]
    found = Survey(total, len(chosen), left_out=dict(dataset.left_out))
    for result in in_order(partial(_look, dataset), iter(chosen), workers):
        if isinstance(result, UnreadableSample):
            found.unreadable.append((result.name, result.reason))
        else:
            found.looks.append(result)
    return found


def _look(dataset: Dataset, index: int) -> Look | UnreadableSample:
    try:
        sample = dataset[index]
        if sample.image is None:
            return UnreadableImage(sample.id, "the sample has no image")
        image = decode(sample.image, name=sample.id)
    except UnreadableSample as fault:
        return fault
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    return Look(
        sha256_bytes(sample.image),
        format_of(sample.image) or "?",
        image.size,
        sample.caption,
        tuple(small.mean((0, 1))),
        tuple(small.std((0, 1))),
        bool(np.ptp(small, axis=2).max() < GREY),
    )


def _suffixes(folder: Path) -> set[str]:
    """Endings of the files below a folder, hidden ones left out."""
    return {
        path.suffix.lower()
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }


def _counted(items: Iterator[str] | Sequence[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in Counter(items).most_common())
