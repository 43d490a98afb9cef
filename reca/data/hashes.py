"""Content hashes of many files, kept in a ledger so that an unchanged file is hashed once.

A ledger entry counts only while the file's size and modification time are those it was hashed at.
All such files are named `.reca-*`, so that data versioning can leave them out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reca.records import read_json, sha256_file, sha256_json, write_json

log = logging.getLogger(__name__)


def stamp(path: Path) -> list[int]:
    """[size in bytes, modification time in ns]: what a cached fact about a file is valid for."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def load_ledger(path: Path) -> dict[str, Any]:
    """The ledger at `path`; empty if there is none or it is damaged, since it can be made again."""
    if not path.exists():
        return {}
    try:
        ledger = read_json(path)
    except ValueError as fault:
        log.warning("ignored: %s", fault)
        return {}
    return ledger if isinstance(ledger, dict) else {}


def save_ledger(path: Path, ledger: dict[str, Any]) -> None:
    """Keep the ledger; in a read-only folder it is only not kept, and made again the next time."""
    try:
        write_json(path, ledger)
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
