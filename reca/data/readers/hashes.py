"""The hash of a data set's files; an unchanged file is hashed only once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reca.core.artifacts import sha256_json
from reca.core.ledger import hash_entry, load_ledger, save_ledger


def hash_files(root: Path, names: Iterable[str], ledger_name: str) -> str:
    """Hex sha256 over the names and contents of files under `root`, in order.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    ledger_path = root / ledger_name
    known = load_ledger(ledger_path)
    ledger = {name: hash_entry(root / name, known.get(name)) for name in names}
    if ledger != known:
        save_ledger(ledger_path, ledger)
    return sha256_json([[name, entry["sha256"]] for name, entry in ledger.items()])
