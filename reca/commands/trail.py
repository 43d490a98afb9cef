"""audit, record: verify the trail from a number back to its data, and commit results to DVC."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path


def audit(arguments: Namespace) -> int:
    """Audit folders and print the problems; returns the exit status, 1 if the trail is broken."""
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
            f"unsealed: run.json of {len(found.unsealed)} stages from an older version has no checksum: times and "
            f"machines cannot be verified (for instance {found.unsealed[0]})"
        )
    print(
        f"{found.stages} stages, {found.files} files hashed: {len(found.problems)} broken, "
        f"{len(found.orphans)} orphans"
    )
    return 0 if found.sound else 1


def record(arguments: Namespace) -> int:
    """Commit the results of Snakemake to DVC after an audit; ValueError if a hash does not match."""
    arguments.folders = []
    if audit(arguments):
        raise ValueError(
            "the audit found broken records, nothing was committed to DVC; run the stages that it lists again"
        )
    return subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force"], check=False
    ).returncode
