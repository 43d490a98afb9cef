"""What to run first on a machine with a GPU: tests, self-checks, edges, times, one alignment of each family.

    make gpu-check                         # six minutes at most; writes docs/results/gpu_<device>.json
    python -m perf.gpu_check --dry-run     # tiny sizes on a CPU, in Triton's interpreter

Every stage is a process with a limit of its own, and one that fails or runs out of time stops no other. Torch, triton,
transformers and pytest suffice; what needs more of reca's packages is skipped and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 360  # seconds for everything
# stage -> its limit in seconds, and whether it needs the packages of reca
STAGES = {
    "tests": (110, False),
    "selfcheck": (45, False),
    "edges": (60, False),
    "overflow": (45, False),
    "bench": (100, False),
    "align": (120, True),
    "step": (60, True),
}
TESTS = ("test_losses", "test_attention", "test_masks", "test_operators", "test_devices")
DRY_TESTS = ("test_devices", "tf32 or precision or launch")  # a file, and those of its tests
SEED = 0


@dataclass
class Outcome:
    """How a stage ended: `passed`, `failed`, `out of time` or `skipped`; its rows, and what it said last."""

    stage: str
    outcome: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""


def command(stage: str, dry: bool, folder: Path) -> list[str]:
    """The process of a stage, which writes its rows to `folder`/`stage`.jsonl."""
    if stage != "tests":
        words = ["-m", "perf.gpu_stages", stage, "--out", str(folder), "--seed", str(SEED)]
        return [sys.executable, *words, *(["--dry-run"] if dry else [])]
    # without the configuration and plug-ins of the whole suite, which import all of reca
    words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest",
             "--import-mode=importlib", "-p", "no:cacheprovider", "--tb=short", "--maxfail=30"]  # fmt: skip
    if dry:
        file, chosen = DRY_TESTS
        return [sys.executable, *words, f"tests/kernels/{file}.py", "-k", chosen]
    if importlib.util.find_spec("xdist"):
        words += ["-n", str(min(os.cpu_count() or 1, 10))]
    # one file compares with masks of a model
    names = [name for name in TESTS if name != "test_masks" or not missing_packages()]
    return [sys.executable, *words, *(f"tests/kernels/{name}.py" for name in names)]


def run_stage(stage: str, dry: bool, folder: Path, left: float) -> Outcome:
    """Run one stage within its limit and the time that is left."""
    limit, whole = STAGES[stage]
    if whole and dry:
        return Outcome(stage, "skipped", said="a dry run: tests/align/test_published.py covers it")
    if whole and (missing := missing_packages()):
        return Outcome(stage, "skipped", said=f"not installed: {', '.join(missing)}")
    started = time.monotonic()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "TRITON_INTERPRET": "1" if dry else "0",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        command(stage, dry, folder), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        # a dry run may share its processor
        said, _ = process.communicate(timeout=10 * limit if dry else max(min(limit, left), 1))
        outcome = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        outcome = "out of time"
    (folder / f"{stage}.log").write_text(said)
    rows = read_rows(folder / f"{stage}.jsonl")
    if outcome == "passed" and any(row.get("verdict") == "failed" for row in rows):
        outcome = "failed"
    last = [line for line in said.splitlines() if line.strip()][-1:]
    return Outcome(stage, outcome, round(time.monotonic() - started, 1), rows, "".join(last)[:200])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a stage had written when it ended."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def missing_packages() -> list[str]:
    """What the stages that train need besides torch, triton, transformers and pytest."""
    needed = ("pydantic", "omegaconf", "hydra", "pyarrow", "PIL", "yaml", "jsonschema", "diffusers")
    return [name for name in needed if importlib.util.find_spec(name) is None]


def machine() -> dict[str, Any]:
    """The device and the versions that figures depend on."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["capability"] = list(torch.cuda.get_device_capability())
    return found | {"seed": SEED}


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per row of every stage, under a line per stage."""
    lines = []
    for one in outcomes:
        lines.append(f"{one.stage:10} {one.outcome:12} {one.seconds:6.1f} s  {one.said}")
        for row in one.rows:
            named = " ".join(f"{key} {value}" for key, value in row.items() if key != "name")
            lines.append(f"  {row['name']:58} {named}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run the stages, print one table, write the results. Returns 1 if a stage failed or ran out of time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder")
    options = parser.parse_args(words)
    about = machine()
    if "device" not in about and not options.dry_run:
        print("gpu-check: torch sees no CUDA device; try --dry-run", file=sys.stderr)
        return 2
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for stage in options.stages:
            left = TOTAL - (time.monotonic() - started)
            if left < 5 and not options.dry_run:
                outcomes.append(Outcome(stage, "out of time", said="the six minutes are over"))
                continue
            print(f"=== {time.monotonic() - started:.0f} s: {stage}", file=sys.stderr, flush=True)
            outcomes.append(run_stage(stage, options.dry_run, Path(folder), left))
            if outcomes[-1].outcome in ("failed", "out of time"):
                print(Path(folder, f"{stage}.log").read_text()[-2000:], file=sys.stderr)
    print(table(outcomes))
    name = re.sub(r"\W+", "_", about.get("device", "dry_run").lower())
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu_{name}.json"
    found = {"machine": about, "stages": [asdict(one) for one in outcomes]}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path}")
    return int(any(one.outcome in ("failed", "out of time") for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
