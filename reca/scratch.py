"""The folder in which a stage is written before it gets its name.

Its writer holds a lock on it, which the kernel frees when the writer dies. So what `kill -9` left behind
is told apart from what is being written, and the next writer of the same output removes it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial-"  # between the output's name and a random ending


class Scratch:
    """A locked folder beside `out`, empty at first. `close` removes what is left of it.

    Where a file system knows no locks, nothing of others is removed. OSError where it cannot be made.
    """

    def __init__(self, out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.glob(f".{glob.escape(out.name)}{PARTIAL}*"):
            _remove_if_dead(path)
        self.path = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{PARTIAL}"))
        os.chmod(self.path, 0o755)
        self._lock = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Free the lock; the folder goes, unless it got its name."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):  # locked: its writer lives
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
