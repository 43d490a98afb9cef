"""CPU seconds (user and system) until a command answers: imports, a tiny model's image, the workflow's plan.

    python -m perf.startup --before CHECKOUT

`--before` measures another checkout, such as one of an older commit, in turn with this one; without it, the values
before stay those of the file. The least of several runs counts: other processes on the machine only add to it.
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

from reca.core.artifacts import machine, versions, write_atomic
from reca.models.registry import runnable

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs/results/startup.json"
PROMPT = "a red circle left of a blue square"


def commands(folder: Path) -> dict[str, list[str]]:
    """Name -> arguments of python; outputs go to `folder`."""
    empty = folder / "Snakefile"
    empty.write_text("rule all:\n    input: []\n")
    found = {"import torch": ["-c", "import torch"]}
    for family in runnable():
        module = f"import reca.models.{family}.model"
        found[module] = ["-c", module]
    for family in runnable():
        model = f"weights/{family}_tiny"
        if (ROOT / model).is_dir():
            out = str(folder / f"{family}.png")
            arguments = ["draw", PROMPT, "--out", out, "--model", model]
            found[f"reca draw, {family}_tiny"] = ["-m", "reca", *arguments]
    plan = ["-m", "snakemake", "-n", "--cores", "1"]
    found["snakemake -n, laptop"] = plan
    found["snakemake -n, an empty workflow"] = [*plan, "--snakefile", str(empty)]
    return found


def cpu_seconds(arguments: list[str], root: Path) -> float:
    """User and system seconds of one run of python in a checkout, child processes included."""
    path = os.pathsep.join([str(root), str(root / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(roots: dict[str, Path], runs: int) -> dict[str, dict[str, float]]:
    """Least CPU seconds of each command by checkout; a first run, which compiles bytecode, does not count."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder)).items():
            rounds = [
                {label: cpu_seconds(command, root) for label, root in roots.items()}
                for _ in range(runs + 1)
            ]
            found[name] = {
                label: round(min(one[label] for one in rounds[1:]), 2) for label in roots
            }
    return found


def main() -> None:
    """Measure, and write the table with the machine and the versions that it holds for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an older checkout")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    roots = {"before": arguments.before.resolve()} if arguments.before else {}
    found = measure({**roots, "now": ROOT}, arguments.runs)
    if not roots and arguments.out.is_file():
        for name, values in json.loads(arguments.out.read_text())["seconds"].items():
            if name in found and "before" in values:
                found[name] = {"before": values["before"], **found[name]}
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "unit": "CPU seconds, user and system, least of the runs, one thread",
        "runs": arguments.runs,
        "seconds": found,
    }
    text = json.dumps(result, indent=2) + "\n"
    write_atomic(arguments.out, text)
    print(text, end="")


if __name__ == "__main__":
    main()
