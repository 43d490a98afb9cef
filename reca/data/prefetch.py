"""Prefetching in background threads, with results in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_PER_WORKER = 2


def in_order(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int, ahead: int = 0
) -> Generator[Result]:
    """Map `function` over `items` in background threads, results in the order of the items.

    `items` may be infinite: at most `AHEAD_PER_WORKER` items per worker are started ahead, or `ahead` if more. An
    exception is raised at its own item. `workers` 0 computes in the caller's thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reca-read")
    pending: deque[Future[Result]] = deque()
    try:
        for item in itertools.islice(items, max(workers * AHEAD_PER_WORKER, ahead)):
            pending.append(pool.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in itertools.islice(items, 1):
                pending.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
