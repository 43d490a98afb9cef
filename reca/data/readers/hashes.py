"""The hash of a data set's files; an unchanged file is hashed only once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reca.core.artifacts import sha256_json
from reca.core.ledger import hashes_of


def hash_files(root: Path, names: Iterable[str]) -> str:
    """Hex sha256 over the names and contents of files under `root`, order included.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    return sha256_json([[name, sha256] for name, sha256 in hashes_of(root, names).items()])
