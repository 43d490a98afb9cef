"""`make rehearse`: every published experiment at scale tiny, from pins to tables, on the loopback host.

Options are variables of the environment, as make passes them: EXPERIMENTS (default: every published one), FOLDER,
FRESH=1 (begin anew), SLURM=1 (one experiment of each family through Slurm), FAULTS=1 (a stage of each rule killed),
RECORD=1 (write docs/results/rehearsal.json).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from reca.core.artifacts import machine, read_json, versions, write_json
from reca.sources.catalogue import SOURCES_FILE
from reca.worker.client import OFF, VARIABLE
from reca.worker.server import shared_worker
from tests.rehearsal import faults, plan, slurm
from tests.rehearsal.driver import SUMMARY, Failed, Rehearsal, say
from tests.rehearsal.servers import Servers, serving
from tests.rehearsal.workspace import ROOT, Workspace

SCALE = "tiny"
RECORD = ROOT / "docs/results/rehearsal.json"


def main() -> int:
    """Exit status 0 if everything that was chosen ran, 1 if something failed, 2 for a wrong option."""
    wanted = os.environ.get("EXPERIMENTS", "").split() or plan.published()
    folder = Path(os.environ.get("FOLDER") or ROOT / "build/rehearsal")
    try:
        plan.chosen(wanted, SCALE)
    except ValueError as error:
        print(f"make rehearse: {error}", file=sys.stderr)
        return 2
    if _set("FRESH"):
        shutil.rmtree(folder, ignore_errors=True)
    space = Workspace.made(folder)
    (space.root / SUMMARY).mkdir(exist_ok=True)
    try:
        served = serving(space.root / "served", space.root / SOURCES_FILE, SCALE)
        with served as servers, shared_worker():
            space.variables = servers.environment | {VARIABLE: os.environ.get(VARIABLE, OFF)}
            rehearse(space, servers, wanted)
    except Failed as failure:
        print(f"make rehearse: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("make rehearse: stopped; run the same command again to go on")
        return 130
    return 0


def rehearse(space: Workspace, servers: Servers, wanted: list[str]) -> None:
    """Everything that was chosen, one after the other; each part's outcome is kept as soon as it is known."""
    rehearsal = Rehearsal(space, servers, SCALE)
    found = rehearsal.run(wanted)
    keep(space, {"machine": machine(), "versions": versions(), **found})
    for stage, counted in found["stages"].items():
        say(f"  {stage:<8} {counted['jobs']:4.0f} jobs {counted['seconds']:7.0f} s")
    cells = ", ".join(f"{n} {status}" for status, n in found["tables"]["cells"].items())
    cpu = f"{found['cpu_seconds']:.0f} s of CPU"
    say(f"{found['jobs']} jobs in {found['run_seconds']:.0f} s ({cpu}); tables: {cells}")
    if _set("FAULTS"):
        keep(space, {"kills": faults.rehearsed(rehearsal)})
    if _set("SLURM"):
        keep(space, {"slurm": slurm.rehearsed(rehearsal, wanted)})
    say(f"summary, differences, tables: {space.root / SUMMARY}")


def keep(space: Workspace, found: dict[str, Any]) -> None:
    """Add to the summary of this folder; with RECORD=1 it is the repository's record, too."""
    path = space.root / SUMMARY / "rehearsal.json"
    whole = {**(read_json(path) if path.is_file() else {}), **found}
    for target in (path, *([RECORD] if _set("RECORD") else [])):
        write_json(target, whole)


def _set(option: str) -> bool:
    return os.environ.get(option, "") not in ("", "0")


if __name__ == "__main__":
    sys.exit(main())
