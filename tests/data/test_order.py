"""The order of samples is exact, resumable, independent of workers and ranks (ANCHORS D1, D2)."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from reca.data.dataset import Sample
from reca.data.order import Cursor, epoch_order
from reca.data.prefetch import in_order
from tests.data.stream import iterate


class Slow:
    """A data set whose samples arrive out of order when read in parallel."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        time.sleep(0.0005 * (index % 3))
        return Sample(id=str(index))


def ids(cursor: Cursor, count: int, n: int = 23, **options) -> list[int]:
    stream = itertools.islice(iterate(Slow(n), cursor, **options), count)
    return [int(sample.id) for sample, _ in stream]


def test_an_epoch_is_a_permutation_fixed_by_seed_and_epoch():
    order = epoch_order(100, 3, 0)
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, epoch_order.__wrapped__(100, 3, 0))
    assert not np.array_equal(order, epoch_order(100, 3, 1))
    assert not np.array_equal(order, epoch_order(100, 4, 0))
    assert not order.flags.writeable


def test_the_order_does_not_drift_between_versions():
    assert epoch_order(8, 0, 0).tolist() == [1, 3, 0, 5, 7, 6, 4, 2]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_order_does_not_depend_on_workers(workers):
    expected = [Cursor(5).moved(p).index(23) for p in range(60)]
    assert ids(Cursor(5), 60, workers=workers) == expected


@pytest.mark.parametrize("world", [1, 2, 4, 7])
def test_ranks_share_an_epoch_without_overlap(world):
    n = 28
    per_rank = [ids(Cursor(1), n // world, n, rank=r, world=world) for r in range(world)]
    assert sorted(itertools.chain(*per_rank)) == list(range(n))
    interleaved = list(itertools.chain(*zip(*per_rank, strict=True)))
    assert interleaved == epoch_order(n, 1, 0).tolist()


@pytest.mark.parametrize("cut", [1, 2, 7, 11, 22, 23, 40])
def test_resume_with_prefetch_neither_repeats_nor_loses(cut):
    whole = ids(Cursor(9), 60, workers=4)
    stream = iterate(Slow(23), Cursor(9), workers=4)
    before = [next(stream) for _ in range(cut)]
    stream.close()
    state = before[-1][1]
    assert state == Cursor(9, cut)
    resumed = ids(Cursor(9, state.position), 60 - cut, workers=2)
    assert [int(sample.id) for sample, _ in before] + resumed == whole


def test_a_run_of_four_ranks_resumes_on_three():
    n, taken, state = 30, [], Cursor(2)
    for rank in range(4):
        indices, after = state.take(n, 3, rank, 4)
        taken += indices
    for rank in range(3):
        indices, last = after.take(n, 6, rank, 3)
        taken += indices
    assert last.position == n
    assert sorted(taken) == list(range(n))


def test_take_agrees_with_iterate_from_any_position():
    start = Cursor(4, 5)
    for rank in range(3):
        indices, after = start.take(23, 8, rank, 3)
        assert indices == ids(start, 8, rank=rank, world=3)
        assert after.position == 5 + 24


def test_a_fault_surfaces_at_its_own_item_and_threads_end():
    def read(item: int) -> int:
        if item == 5:
            raise OSError("disk")
        return item

    seen = []
    with pytest.raises(OSError, match="disk"):
        for value in in_order(read, iter(range(20)), 3):
            seen.append(value)
    assert seen == [0, 1, 2, 3, 4]
    deadline = time.monotonic() + 5
    while any(t.name.startswith("reca-read") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reading_ahead_is_bounded():
    begun = []
    stream = in_order(lambda item: begun.append(item) or item, itertools.count(), 2)
    next(stream)
    time.sleep(0.05)
    assert len(begun) <= 5
    stream.close()
    begun.clear()
    stream = in_order(lambda item: begun.append(item) or item, itertools.count(), 2, ahead=30)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(begun) < 31:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(begun) == 31
    stream.close()


def test_empty_sets_and_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match="empty"):
        epoch_order(0, 0, 0)
    with pytest.raises(ValueError, match=r"rank 2 is not in 0\.\.1"):
        Cursor(0).of_rank(2, 2)
