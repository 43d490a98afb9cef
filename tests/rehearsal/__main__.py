"""`make rehearse`: every published experiment at scale tiny, from pins to tables, on the loopback host.

Options are variables of the environment, as make passes them: EXPERIMENTS (default: every published one), FOLDER,
FRESH=1 (begin anew), FIRST_RUN=1 (the commands of docs/first_run.md as well), SLURM=1, FAULTS=1, RECORD=1.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from reca.core.artifacts import machine, read_json, versions, write_json
from reca.sources.catalogue import SOURCES_FILE
from tests.rehearsal import plan
from tests.rehearsal.driver import SUMMARY, Failed, Rehearsal, say
from tests.rehearsal.servers import serving
from tests.rehearsal.workspace import ROOT, Workspace

SCALE = "tiny"
RECORD = ROOT / "docs/results/rehearsal.json"


def main() -> int:
    """Exit status 0 if everything that was chosen ran, 1 if something failed, 2 for a wrong option."""
    wanted = os.environ.get("EXPERIMENTS", "").split() or plan.published()
    folder = Path(os.environ.get("FOLDER") or ROOT / "build/rehearsal")
    if _set("FRESH"):
        shutil.rmtree(folder, ignore_errors=True)
    space = Workspace.made(folder)
    (space.root / SUMMARY).mkdir(exist_ok=True)
    try:
        plan.chosen(wanted, SCALE)
    except ValueError as error:
        print(f"make rehearse: {error}", file=sys.stderr)
        return 2
    try:
        with serving(space.root / "served", space.root / SOURCES_FILE, SCALE) as servers:
            space.variables = servers.environment
            found = Rehearsal(space, servers, SCALE).run(wanted)
    except Failed as failure:
        print(f"make rehearse: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("make rehearse: stopped; run the same command again to go on")
        return 130
    write_json(space.root / SUMMARY / "rehearsal.json", found)
    if _set("RECORD"):
        kept = read_json(RECORD) if RECORD.is_file() else {}
        write_json(RECORD, {**kept, "machine": machine(), "versions": versions(), **found})
    for stage, counted in found["stages"].items():
        say(
            f"  {stage:<8} {counted['jobs']:4.0f} jobs {counted['seconds']:7.0f} s, {counted['cpu']:6.0f} s of CPU"
        )
    cells = ", ".join(f"{n} {status}" for status, n in found["tables"]["cells"].items())
    say(f"{found['jobs']} jobs in {found['run_seconds']:.0f} s; tables: {cells}")
    say(f"summary, differences, tables: {space.root / SUMMARY}")
    return 0


def _set(option: str) -> bool:
    return os.environ.get(option, "") not in ("", "0")


if __name__ == "__main__":
    sys.exit(main())
