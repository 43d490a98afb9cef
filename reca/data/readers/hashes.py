"""Content hashes of many files, kept in a ledger so that an unchanged file is hashed once.

A ledger lies next to the data, so it may come with somebody's download, or be damaged like any file. It is sealed
(`reca.core.sealed`), and counts only

- where the user who reads it wrote it, or the owner of its folder, who could change the data as well; and
- for files that have the size, times and inode at which they were hashed. The kernel sets the time of change
  (ctime) and the inode when a file is unpacked or copied, so nobody can ship a ledger that fits.

Otherwise the files are hashed again. All such files are named `.reca-*`, so that data versioning can leave them out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reca.core.artifacts import sha256_file, sha256_json, write_atomic
from reca.core.sealed import seal, unseal

log = logging.getLogger(__name__)


def stamp(path: Path) -> list[int]:
    """[size in bytes, modification and change time in ns, inode]: what a cached fact about a file is valid for."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def load_ledger(path: Path) -> dict[str, Any]:
    """The ledger at `path`; empty where there is none to be believed, since it can be made again."""
    try:
        content = unseal(path.read_bytes().removesuffix(b"\n"))
        fault = "damaged, or of an older reca" if content is None else "another user wrote it"
        if content is not None and path.stat().st_uid in _owners(path):
            return content["facts"]
    except FileNotFoundError:
        return {}
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    log.warning("%s: ignored and made again (%s)", path, fault)
    return {}


def _owners(path: Path) -> tuple[int, int]:
    """Whose ledgers are believed: one's own, and those of the folder's owner."""
    return os.geteuid(), path.parent.stat().st_uid


def save_ledger(path: Path, ledger: dict[str, Any]) -> None:
    """Keep the ledger; in a read-only folder it is only not kept, and made again the next time."""
    try:
        write_atomic(path, seal({"facts": ledger}) + "\n")
    except ValueError as fault:
        log.info("not kept: %s", fault)


def hash_files(root: Path, names: Iterable[str], ledger_name: str) -> str:
    """Hex sha256 over the names and contents of files under `root`, order included.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    ledger_path = root / ledger_name
    known = load_ledger(ledger_path)
    ledger = {name: _entry(root / name, known.get(name)) for name in names}
    if ledger != known:
        save_ledger(ledger_path, ledger)
    return sha256_json([[name, entry["sha256"]] for name, entry in ledger.items()])


def _entry(path: Path, known: Any) -> dict[str, Any]:
    try:
        now = stamp(path)
        if isinstance(known, dict) and known.get("stamp") == now and "sha256" in known:
            return known
        return {"stamp": now, "sha256": sha256_file(path)}
    except OSError as fault:
        raise ValueError(f"{path}: cannot read ({fault.strerror}); fetch it again") from fault
