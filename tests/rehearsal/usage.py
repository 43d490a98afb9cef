"""Wall and CPU seconds of the commands that run in a block."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Used:
    """Seconds on the clock, and of all processes that ended meanwhile, theirs included."""

    seconds: float = 0.0
    cpu: float = 0.0


@contextmanager
def used() -> Iterator[Used]:
    """Filled in when the block ends."""
    found = Used()
    started, before = time.monotonic(), _children()
    try:
        yield found
    finally:
        found.seconds, found.cpu = time.monotonic() - started, _children() - before


def _children() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime
