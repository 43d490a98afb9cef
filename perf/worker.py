"""CPU seconds of a local run of the workflow, its jobs in a worker that has imported once and by themselves.

    python -m perf.worker [--experiment laptop_smoke]

Each run is in a clone of this repository's last commit; all outputs of all stages must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reca.core.artifacts import machine, read_manifest, versions, write_atomic
from reca.worker.client import OFF, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs/results/worker.json"


def measured(clone: Path, experiment: str, worker: bool) -> dict[str, Any]:
    """Seconds of a run from nothing, all processes together; other work on the machine makes them a little more."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RECA"))}
    environment |= {"HF_HUB_OFFLINE": "1"} | ({} if worker else {VARIABLE: OFF})
    words = ["-m", "snakemake", "--cores", "2", "--config", f"experiment={experiment}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
    }


def outputs(clone: Path) -> dict[str, Any]:
    """The files that every stage of a run has recorded; the report's page holds times."""
    folders = (path.parent for path in clone.glob("results/*/**/manifest.json"))
    return {
        str(folder.relative_to(clone)): read_manifest(folder)["outputs"]
        for folder in folders
        if folder.name != "report"
    }


def main() -> None:
    """Measure, and write the figures with the machine and the versions that they hold for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="laptop_smoke")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clones = {name: Path(folder) / name for name in ("by_themselves", "in_a_worker")}
        found = {
            name: measured(clone, arguments.experiment, name == "in_a_worker")
            for name, clone in clones.items()
        }
        made = [outputs(clone) for clone in clones.values()]
    if made[0] != made[1]:
        sys.exit("the outputs of the two runs differ")
    result = {
        "machine": machine(),
        "versions": versions(),
        "experiment": arguments.experiment,
        "stages_with_equal_outputs": len(made[0]),
        "jobs": found,
    }
    text = json.dumps(result, indent=2) + "\n"
    write_atomic(arguments.out, text)
    print(text, end="")


if __name__ == "__main__":
    main()
