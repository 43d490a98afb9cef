"""Locks of files and folders, which the kernel releases when a process dies; one error where a file system has none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextmanager
def demand_locks(path: Path) -> Iterator[None]:
    """Turn the error of a file system without locks into a ValueError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        raise ValueError(
            f"{path}: this file system has no locks ({error.strerror}); put it on one that has them, such as local "
            "scratch, or name a folder there (--work)"
        ) from error


def lock_file(descriptor: int, path: Path, *, wait: bool = False) -> bool:
    """Lock an open file or folder for this process alone; False if another process has it and `wait` is False.

    Raises ValueError where the file system has no locks (some mounts of Lustre and NFS); `path` is named in it.
    """
    with demand_locks(path):
        return lock_descriptor(descriptor, blocking=wait)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same file or folder.

    A file system without locks, and a file that may not be opened, keep nobody out.
    """
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        lock_descriptor(descriptor)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
