"""Samples of one rank from a cursor on, read ahead: how `Cursor` and `in_order` go together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from reca.data.dataset import Dataset, Sample
from reca.data.order import Cursor
from reca.data.prefetch import in_order


def iterate(
    dataset: Dataset, cursor: Cursor, *, rank: int = 0, world: int = 1, workers: int = 2
) -> Iterator[tuple[Sample, Cursor]]:
    """Stream the samples of one rank from `cursor` on, without end, read ahead by threads.

    Each comes with the cursor to store for resuming after it. What was read ahead but not yielded
    is not part of it, so a resumed stream neither repeats nor loses a sample.
    """
    n = len(dataset)
    start = cursor.of_rank(rank, world)
    indices = (start.moved(step * world).index(n) for step in itertools.count())
    for taken, sample in enumerate(in_order(dataset.__getitem__, indices, workers), start=1):
        yield sample, cursor.moved(taken * world)
