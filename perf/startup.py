"""CPU seconds (user and system) until a command answers: imports, a tiny model's image, the workflow's plan.

    python -m perf.startup --out docs/results/startup.json --before before.json

`--root` measures another checkout, such as one of an older commit, whose result `--before` then reads. The least of
several runs counts: other processes on the machine only add to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FAMILIES = ("showo", "bagel", "harmon", "openuni")


def commands(folder: Path) -> dict[str, list[str]]:
    """Name -> arguments of python; what they write goes to `folder`."""
    empty = folder / "Snakefile"
    empty.write_text("rule all:\n    input: []\n")
    found = {"import torch": ["-c", "import torch"]}
    for family in FAMILIES:
        module = f"import reca.models.{family}.model"
        found[module] = ["-c", module]
    for family in FAMILIES:
        prompt, out = "a red circle left of a blue square", str(folder / f"{family}.png")
        arguments = ["draw", prompt, "--out", out, "--model", f"weights/{family}_tiny"]
        found[f"reca draw, {family}_tiny"] = ["-m", "reca", *arguments]
    plan = ["-m", "snakemake", "-n", "--cores", "1"]
    found["snakemake -n, laptop"] = plan
    found["snakemake -n, an empty workflow"] = [*plan, "--snakefile", str(empty)]
    return found


def cpu_seconds(arguments: list[str], root: Path) -> float:
    """User and system seconds of one run of python in a checkout, child processes included."""
    path = os.pathsep.join([str(root), str(root / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(root: Path, runs: int) -> dict[str, float]:
    """Least CPU seconds of each command; a first run, which compiles bytecode, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: round(min([cpu_seconds(command, root) for _ in range(runs + 1)][1:]), 2)
            for name, command in commands(Path(folder)).items()
        }


def main() -> None:
    """Measure and write, or print without `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="checkout to measure")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path, help="result of an earlier run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "unit": "CPU seconds, user and system, least of the runs, one thread",
        "runs": arguments.runs,
    }
    if arguments.before:
        result["before"] = json.loads(arguments.before.read_text())["seconds"]
    result["seconds"] = measure(arguments.root.resolve(), arguments.runs)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
