"""glibc's allocator, told to keep what tensors free.

By default it returns a large freed block to the system at once, and the next tensor of that size is faulted in page by
page, for every operation of a small model anew (tests/core/test_allocator.py counts the faults).
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
OWN_HEAP = 32 << 20  # bytes, glibc's limit; smaller blocks are not mapped one by one
KEPT = 256 << 20  # bytes that may lie free before they are returned
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Raise both thresholds for this process; False where the environment sets them, or without glibc."""
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, OWN_HEAP)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
