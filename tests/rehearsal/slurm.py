"""One experiment of each family through `--profile slurm`, on a one-node Slurm on the loopback host."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.rehearsal import plan
from tests.rehearsal.driver import SUMMARY, Failed, Rehearsal, say
from tests.rehearsal.faults import begun_anew
from tests.rehearsal.workspace import ROOT

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODE = ROOT / "workflow/slurm_node"
PROFILE = ("--cores", "all", "--profile", "slurm")


def why_not() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    return None if os.geteuid() == 0 else "the one-node Slurm needs root"


@contextmanager
def node() -> Iterator[None]:
    """A one-node Slurm for the block; Failed with what it says where it does not start."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # munge and slurmd change users
        started = subprocess.run(
            [NODE / "start.sh", folder], text=True, capture_output=True, check=False
        )
        try:
            if started.returncode:
                raise Failed(f"{NODE}/start.sh: {started.stderr.strip()}")
            yield
        finally:
            subprocess.run([NODE / "stop.sh", folder], check=False, capture_output=True)


def rehearsed(rehearsal: Rehearsal, wanted: Sequence[str]) -> dict[str, Any]:
    """The smallest experiment of each family among the wanted ones, in a folder of its own; or why not."""
    if reason := why_not():
        say(f"slurm: skipped, {reason}")
        return {"skipped": reason}
    space = begun_anew(rehearsal.space.root / "slurm_folder", rehearsal.space)
    (space.root / SUMMARY).mkdir()
    chosen = [name for name in plan.OF_FAMILY.values() if name in wanted]
    with node():
        return without_cpu(replace(rehearsal, space=space, profile=PROFILE).run(chosen))


def without_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """A summary without CPU seconds: they are Snakemake's alone, as its jobs are processes of slurmd."""
    one_by_one = found["experiments"].items()
    experiments = {name: {k: v for k, v in one.items() if k != "cpu"} for name, one in one_by_one}
    return {k: v for k, v in found.items() if k != "cpu_seconds"} | {"experiments": experiments}
