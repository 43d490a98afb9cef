"""Content hashes of many files, kept in a ledger so that an unchanged file is hashed once, whoever asks.

A folder has one ledger (`LEDGER`) for a job's check of its inputs and for the fingerprint of a data set.
A ledger lies beside the data, so it may come with somebody's download, or be damaged like any file. It is sealed
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

from reca.core.artifacts import MANIFEST, RUN, sha256_file, verify
from reca.core.atomic import write_atomic
from reca.core.sealed import seal, unseal

log = logging.getLogger(__name__)

LEDGER = ".reca-hashes.json"


def stamp(path: Path) -> list[int]:
    """[size in bytes, modification and change time in ns, inode]: what a cached fact about a file is valid for."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def load_ledger(path: Path) -> dict[str, Any]:
    """The ledger at `path`; empty if there is none to be believed, since it can be made again."""
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


def hash_entry(path: Path, known: Any) -> dict[str, Any]:
    """A file's ledger entry: `known` if the file is unchanged, else hashed; ValueError if it cannot be read."""
    try:
        now = stamp(path)
        if isinstance(known, dict) and known.get("stamp") == now and "sha256" in known:
            return known
        return {"stamp": now, "sha256": sha256_file(path)}
    except OSError as fault:
        raise ValueError(f"{path}: cannot read ({fault.strerror}); fetch it again") from fault


def hashes_of(root: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of files below `root` by name; each is hashed once while it is unchanged.

    They are entered where the stage that wrote the folder is verified, which may be above `root`. ValueError names a
    file that cannot be read.
    """
    names = list(names)
    made = (at for at in (root, *root.parents) if all((at / n).is_file() for n in (MANIFEST, RUN)))
    home = next(made, root)
    known, found, place = load_ledger(home / LEDGER), {}, root.relative_to(home)
    for name in names:
        entered = (place / name).as_posix()
        found[entered] = hash_entry(root / name, known.get(entered))
    _keep(home, known, found)
    return {name: str(found[(place / name).as_posix()]["sha256"]) for name in names}


def verify_once(directory: str | Path) -> dict[str, Any]:
    """`artifacts.verify` for a job's input: a file that was hashed before and is unchanged is not hashed again.

    `reca audit` hashes every file and reads no ledger.
    """
    directory = Path(directory)
    known, seen = load_ledger(directory / LEDGER), {}

    def hashed(path: Path) -> str:
        name = path.relative_to(directory).as_posix()
        seen[name] = hash_entry(path, known.get(name))
        return str(seen[name]["sha256"])

    manifest = verify(directory, hashed)
    _keep(directory, known, seen)
    return manifest


def _keep(folder: Path, known: dict[str, Any], found: dict[str, Any]) -> None:
    """Enter what was hashed now; other entries stay while their files do."""
    if all(known.get(name) == entry for name, entry in found.items()):
        return
    others = {name: entry for name, entry in known.items() if (folder / name).is_file()}
    save_ledger(folder / LEDGER, others | found)
