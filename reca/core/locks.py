"""File systems without locks, such as some mounts of Lustre and NFS: one line with the folder and the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            f"{path}: this file system has no locks ({error.strerror}); put work/ on one that has them, such as local "
            "scratch, or name a folder there (--work)"
        ) from error
