"""What a data set is (`Sample`, `Dataset`), and how its pictures are read when some are corrupt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from reca.data.order import in_order
from reca.images import MAX_PIXELS, UnreadableImage, decode

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

Conversation = list[tuple[str, str]]
"""(question, answer) turns, in order."""

NAMES_SHOWN = 10


@dataclass(frozen=True)
class Sample:
    """One row of a data set; what a source does not have is None or empty."""

    id: str
    image: bytes | None = None  # an encoded file, not decoded yet
    caption: str | None = None
    conversations: list[Conversation] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Dataset(Protocol):
    """A finite, fixed sequence of samples with random access; `__getitem__` is safe in threads."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; `UnreadableImage` if its file cannot be read."""
        ...

    def texts(self, index: int) -> Sample:
        """The sample at `index` without its picture, which is not read: what is said about it."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 over content and reading options: equal fingerprints mean equal samples."""
        ...


@dataclass
class Corrupt:
    """The tally of unreadable pictures among `total`: (name, reason) of each, in reading order."""

    total: int
    max_fraction: float
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fault: UnreadableImage) -> None:
        """Count one; ValueError as soon as the threshold can no longer be kept."""
        self.bad.append((fault.name, fault.reason))
        log.warning("skipped %s", fault)
        if len(self.bad) > self.max_fraction * self.total:
            raise ValueError(
                f"{self.describe()}; more than {self.max_fraction:.2%} are corrupt: "
                "fetch the data again, or raise max_bad_fraction if you accept the loss"
            )

    def describe(self) -> str:
        """One line: how many of how many, and the first names."""
        shown = "; ".join(f"{name} ({reason})" for name, reason in self.bad[:NAMES_SHOWN])
        more = f"; and {len(self.bad) - NAMES_SHOWN} more" if len(self.bad) > NAMES_SHOWN else ""
        return f"{len(self.bad)} of {self.total} images unreadable: {shown}{more}"


def read_images(
    dataset: Dataset,
    indices: Sequence[int],
    *,
    max_bad_fraction: float = 0.001,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
    tally: Corrupt | None = None,
) -> Iterator[tuple[int, Sample, Image]]:
    """Yield (index, sample, RGB image) for every readable sample of `indices`, in order.

    Unreadable pictures are skipped, never replaced, so what is yielded depends on the data alone.
    They are counted in `tally`, or in a fresh one that is logged at the end.

    Raises:
        ValueError: more than `max_bad_fraction` of `indices` are unreadable; raised at the first
            sample past the threshold, with names.
    """
    tally = tally or Corrupt(len(indices), max_bad_fraction)
    read = partial(_read, dataset, max_pixels)
    for index, result in zip(indices, in_order(read, iter(indices), workers), strict=True):
        if isinstance(result, UnreadableImage):
            tally.add(result)
        else:
            yield index, *result
    if tally.bad:
        log.warning("%s", tally.describe())


def _read(dataset: Dataset, max_pixels: int, index: int) -> tuple[Sample, Image] | UnreadableImage:
    try:
        sample = dataset[index]
        if sample.image is None:
            return UnreadableImage(sample.id, "the sample has no image")
        return sample, decode(sample.image, name=sample.id, max_pixels=max_pixels)
    except UnreadableImage as fault:
        return fault
