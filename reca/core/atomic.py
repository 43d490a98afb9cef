"""Files and folders that appear whole under their name, or not at all: the one place that gives them names.

New content lies next to its target under a hidden name, is flushed to the disk, and is renamed. So a kill at any
moment leaves the former content or the new one; `reca.core.ownership` knows such leftovers by their names. Folders
that a stage writes have a lock besides (`reca.core.staging`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# ---- errors of the disk --------------------------------------------------------------------------
def disk_error(where: object, what: str, error: OSError) -> ValueError:
    """One line for what the disk refused: `where` it was, `what` could not be done, why, and the remedy."""
    reason = error.strerror or str(error)
    if error.errno and reason.startswith("[Errno"):  # a library's words in place of the system's
        reason = os.strerror(error.errno)
    return ValueError(f"{where}: cannot {what} ({reason}); free space or choose a writable folder")


@contextmanager
def disk_errors(where: object, what: str) -> Iterator[None]:
    """Turn any OSError of the block into the ValueError of `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(where, what, error) from error


# ---- names ---------------------------------------------------------------------------------------
def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder with a name that is not taken; the kernel applies the umask, as `tempfile` does not."""
    path = parent / f"{prefix}{secrets.token_hex(8)}"
    path.mkdir()
    return path


def new_file(parent: Path, prefix: str) -> Path:
    """Make an empty file with a name that is not taken; the kernel applies the umask."""
    path = parent / f"{prefix}{secrets.token_hex(8)}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    return path


def flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(source: Path, target: Path, *, durable: bool = True) -> None:
    """Give finished content its name: a file replaces a former one, a folder needs a name that is not taken.

    Without `durable` the disk is not waited for: a kill leaves whole files, a power cut need not.
    """
    if durable:
        flush(source)
    os.replace(source, target)
    if durable:
        flush(target.parent)


# ---- files ---------------------------------------------------------------------------------------
@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty file next to `path`, which replaces it when the block ends well and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_file(path.parent, f".{path.name}.")
    try:
        yield temporary
        publish(temporary, path, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write a complete file or nothing; ValueError names the path and the bytes where the disk refuses them."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    with (
        disk_errors(path, f"write {len(content)} bytes"),
        replacing(path, durable=durable) as temporary,
    ):
        temporary.write_bytes(content)
