"""The data set interface (`Sample`, `Dataset`), and reading that tolerates a few unreadable samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from reca.core.images import MAX_PIXELS, decode
from reca.core.unreadable import UnreadableImage, UnreadableSample
from reca.data.prefetch import in_order

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

Conversation = list[tuple[str, str]]
"""(question, answer) turns, in order."""

NAMES_SHOWN = 10
MAX_UNREADABLE = 0.001  # share of a data set


@dataclass(frozen=True)
class Sample:
    """One row of a data set; absent values are None or empty."""

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
        """The sample at `index`; `UnreadableSample` if its file or its text cannot be used."""
        ...

    def texts(self, index: int) -> Sample:
        """The sample at `index` without reading its image.

        `UnreadableText` if its text is not valid (`reca.data.readers.text`).
        """
        ...

    def fingerprint(self) -> str:
        """Hex sha256 over content and reading options: equal fingerprints mean equal samples."""
        ...

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of files and entries that are not samples, by reason."""
        ...


@dataclass
class Corrupt:
    """Tally of the unreadable samples among `total`: (name, reason) of each, in reading order."""

    total: int
    max_fraction: float
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fault: UnreadableSample) -> None:
        """Count an unreadable sample; ValueError as soon as the threshold is exceeded."""
        self.bad.append((fault.name, fault.reason))
        log.warning("skipped %s", fault)
        if len(self.bad) > self.max_fraction * self.total:
            raise ValueError(
                f"{self.describe()}; more than {self.max_fraction:.2%} are corrupt: repair or fetch the "
                "data again, or raise max_unreadable in the data's options if you accept the loss"
            )

    def describe(self) -> str:
        """A line with the counts and the first names."""
        shown = "; ".join(f"{name} ({reason})" for name, reason in self.bad[:NAMES_SHOWN])
        more = f"; and {len(self.bad) - NAMES_SHOWN} more" if len(self.bad) > NAMES_SHOWN else ""
        return f"{len(self.bad)} of {self.total} samples unreadable: {shown}{more}"


def read_images(
    dataset: Dataset,
    indices: Sequence[int],
    *,
    max_bad_fraction: float = MAX_UNREADABLE,
    max_pixels: int = MAX_PIXELS,
    jpeg_side: int | None = None,
    workers: int = 0,
    ahead: int = 0,
    tally: Corrupt | None = None,
) -> Iterator[tuple[int, Sample, Image]]:
    """Yield (index, sample, RGB image) for every readable sample of `indices`, in order.

    Unreadable samples are skipped, never replaced, so the result depends only on the data.
    They are counted in `tally`, or in a fresh one that is logged at the end. `jpeg_side`: see `images.decode`;
    `workers` and `ahead`: `prefetch.in_order`.

    Raises:
        ValueError: more than `max_bad_fraction` of `indices` are unreadable; raised at the first
            sample past the threshold, with names.
    """
    tally = tally or Corrupt(len(indices), max_bad_fraction)
    read = partial(_read, dataset, max_pixels, jpeg_side)
    for index, result in zip(indices, in_order(read, iter(indices), workers, ahead), strict=True):
        if isinstance(result, UnreadableSample):
            tally.add(result)
        else:
            yield index, *result
    if tally.bad:
        log.warning("%s", tally.describe())


def read_texts(dataset: Dataset, max_unreadable: float = MAX_UNREADABLE) -> list[Sample]:
    """The texts of a complete data set; invalid ones are skipped and counted.

    Raises:
        ValueError: more than `max_unreadable` of the samples have no usable text.
    """
    tally, found = Corrupt(len(dataset), max_unreadable), []
    for index in range(len(dataset)):
        try:
            found.append(dataset.texts(index))
        except UnreadableSample as fault:
            tally.add(fault)
    return found


def described(left_out: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Summary of what a reader skipped, for a record: the number of each kind and the first names."""
    return {
        reason: {"count": len(names), "first": list(names[:NAMES_SHOWN])}
        for reason, names in sorted(left_out.items())
    }


def _read(
    dataset: Dataset, max_pixels: int, jpeg_side: int | None, index: int
) -> tuple[Sample, Image] | UnreadableSample:
    try:
        sample = dataset[index]
        if sample.image is None:
            return UnreadableImage(sample.id, "the sample has no image")
        image = decode(sample.image, name=sample.id, max_pixels=max_pixels, jpeg_side=jpeg_side)
        return sample, image
    except UnreadableSample as fault:
        return fault
