"""Wall and CPU seconds of the commands that run in a block."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil


@dataclass
class Used:
    """Seconds on the clock, and of all processes below this one, those that ended and those that go on."""

    seconds: float = 0.0
    cpu: float = 0.0


@contextmanager
def used() -> Iterator[Used]:
    """Filled in when the block ends."""
    found = Used()
    started, before = time.monotonic(), _below()
    try:
        yield found
    finally:
        found.seconds, found.cpu = time.monotonic() - started, _below() - before


def _below() -> float:
    """CPU seconds of the processes that this one has waited for, and of those that live: a worker and its templates."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # its own, and of those that it has waited for
    return total
