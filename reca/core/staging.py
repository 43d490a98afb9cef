"""The folder in which a stage is written before it gets its name.

Its writer holds a lock on it, which the kernel frees when the writer dies. So leftovers of `kill -9`
are distinguished from work in progress, and the next writer of the same output removes them.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from reca.core.atomic import new_folder, publish

PARTIAL = ".partial-"  # between the output's name and a random ending
_ENDING = re.compile(r"[0-9a-f]{16}")


class StagingFolder:
    """A locked folder next to `out`, empty at first. `close` removes what is left of it.

    On a file system without locks nothing of others is removed. OSError if it cannot be made, or if
    there is no room for `needs` bytes.
    """

    def __init__(self, out: Path, needs: int = 0) -> None:
        # Neither `new/..` nor a link on the way may name another place once a folder was moved.
        out = out.resolve() if out.is_absolute() else Path(os.path.relpath(out.resolve()))
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needs:
            raise OSError(errno.ENOSPC, f"only {free} bytes are free")
        self._out, self._prefix, self._parent = out, f".{out.name}{PARTIAL}", out.parent
        for path in out.parent.glob(f"{glob.escape(self._prefix)}*"):
            if _ENDING.fullmatch(path.name.removeprefix(self._prefix)) and not path.is_symlink():
                _remove_if_dead(path)
        self.path = new_folder(out.parent, self._prefix)
        self._lock = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):
            lock_descriptor(self._lock, blocking=False)

    def replace(self) -> None:
        """Give the folder the name `out`; a former one is moved away first, so that no moment has files of both."""
        former = None
        if self._out.is_dir():
            former = new_folder(self._parent, self._prefix)
            os.replace(self._out, former)
        try:
            publish(self.path, self._out)
        except OSError:
            if self._out.is_dir():
                os.replace(self._out, self.path)
            if former:
                os.replace(former, self._out)
            raise
        if former:
            shutil.rmtree(former, ignore_errors=True)  # what is left of it, the next writer removes

    def close(self) -> None:
        """Free the lock; the folder goes, unless it got its name."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """An empty folder next to `out`, which replaces it when the block ends well and is removed otherwise."""
    staging = StagingFolder(out)
    try:
        yield staging.path
        staging.replace()
    finally:
        staging.close()


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if lock_descriptor(descriptor, blocking=False):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
