"""audit, record: the trail from a number back to its data."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path


def audit(arguments: Namespace) -> int:
    """Audit folders; 1 where the trail is broken."""
    from reca.core.lineage import audit as walk

    standard = [name for name in ("data", "results") if Path(name).is_dir()]
    found = walk(arguments.folders or standard or ["results"])
    for problem in found.problems:
        print(f"broken: {problem}")
    for orphan in found.orphans:
        print(f"orphan: {orphan} (no record covers it)")
    for end in found.ends:
        print(f"ends: {end}")
    if found.unsealed:
        print(
            f"unsealed: run.json of {len(found.unsealed)} stages, made by an older reca: their times and machines "
            f"cannot be checked (for instance {found.unsealed[0]})"
        )
    print(
        f"{found.stages} stages, {found.files} files hashed: {len(found.problems)} broken, "
        f"{len(found.orphans)} orphans"
    )
    return 0 if found.sound else 1


def record(arguments: Namespace) -> int:
    """Let DVC take over what Snakemake made, only where every hash is right."""
    arguments.folders = []
    if audit(arguments):
        raise ValueError("the audit found broken records; nothing was committed to DVC")
    return subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force"], check=False
    ).returncode
