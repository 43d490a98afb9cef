"""What to run first on a machine with a GPU: tests, self-checks, edges, alignments of every family, times.

    make gpu-check                         # six minutes at most; writes docs/results/gpu_<device>.json
    python -m perf.gpu_check --dry-run     # tiny sizes on a CPU, in Triton's interpreter

Every stage is a process with a limit of its own, and one that fails or runs out of time stops no other. What is checked
runs side by side, then what is timed runs alone. Torch, triton, transformers and pytest suffice; stages that need more
of reca's packages are skipped and named. Rows are appended to gpu_<device>.jsonl while stages run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 360  # seconds for everything
FAMILIES = ("showo", "harmon", "bagel", "openuni", "janus")


@dataclass(frozen=True)
class Stage:
    """Its limit in seconds; whether it runs alone on the device; whether it needs the packages of reca."""

    limit: int
    alone: bool = False
    whole: bool = False


STAGES = {
    "tests": Stage(150),
    "selfcheck": Stage(90),
    "edges": Stage(90),
    "graphs": Stage(120),
    "far_weights": Stage(60),
    "far_pack": Stage(60),
    "far_heads": Stage(60),
    **{f"align_{family}": Stage(150, whole=True) for family in FAMILIES},
    "bench_losses": Stage(60, alone=True),
    "bench_attention": Stage(75, alone=True),
    "step": Stage(60, alone=True, whole=True),
}
TESTS = ("test_losses", "test_attention", "test_masks", "test_operators", "test_devices")
DRY_TESTS = ("test_devices", "tf32 or precision or launch")  # a file, and those of its tests
TEST_PROCESSES = 6  # compiling kernels takes most of their time; the other stages compile, too
SEED = 0


@dataclass
class Outcome:
    """How a stage ended: `passed`, `failed`, `out of time` or `skipped`; its rows, and what it said last."""

    stage: str
    outcome: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""


class Check:
    """One run of all stages: its time, the file of rows, the outcomes so far."""

    def __init__(self, out: Path, dry: bool) -> None:
        self.dry, self.started = dry, time.monotonic()
        self.about = machine()
        name = re.sub(r"\W+", "_", self.about.get("device", "dry_run").lower())
        out.mkdir(parents=True, exist_ok=True)
        self.rows, self.result = out / f"gpu_{name}.jsonl", out / f"gpu_{name}.json"
        self.rows.unlink(missing_ok=True)
        self.outcomes: dict[str, Outcome] = {}

    def left(self) -> float:
        """Seconds of the six minutes that are left."""
        return TOTAL - (time.monotonic() - self.started)

    def run(self, stages: Sequence[str]) -> None:
        """Run what checks side by side (one after another in a dry run), then what takes times."""
        together = [name for name in stages if not STAGES[name].alone]
        with ThreadPoolExecutor(1 if self.dry else max(len(together), 1)) as threads:
            list(threads.map(self._stage, together))
        for name in (name for name in stages if STAGES[name].alone):
            self._stage(name)

    def _stage(self, name: str) -> None:
        print(f"=== {time.monotonic() - self.started:.0f} s: {name}", file=sys.stderr, flush=True)
        outcome = run_stage(name, self.dry, self.rows, self.left())
        self.outcomes[name] = outcome
        print(f"=== {time.monotonic() - self.started:.0f} s: {name} {outcome.outcome}",
              file=sys.stderr, flush=True)  # fmt: skip
        if outcome.outcome in ("failed", "out of time"):
            print(outcome.said, file=sys.stderr, flush=True)
        found = {"machine": self.about, "stages": [asdict(one) for one in self.outcomes.values()]}
        self.result.write_text(json.dumps(found, indent=1) + "\n")


def command(stage: str, dry: bool, rows: Path) -> list[str]:
    """The process of a stage, which appends its rows to the file `rows`."""
    if stage != "tests":
        words = ["-m", "perf.gpu.stages", stage, "--rows", str(rows), "--seed", str(SEED)]
        return [sys.executable, *words, *(["--dry-run"] if dry else [])]
    # without the configuration and plug-ins of the whole suite, which import all of reca
    words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest",
             "--import-mode=importlib", "-p", "no:cacheprovider", "--tb=short", "--maxfail=30"]  # fmt: skip
    if dry:
        file, chosen = DRY_TESTS
        return [sys.executable, *words, f"tests/kernels/{file}.py", "-k", chosen]
    if importlib.util.find_spec("xdist"):
        words += ["-n", str(min(os.cpu_count() or 1, TEST_PROCESSES))]
    # one file compares with masks of a model
    names = [name for name in TESTS if name != "test_masks" or not missing_packages()]
    return [sys.executable, *words, *(f"tests/kernels/{name}.py" for name in names)]


def run_stage(stage: str, dry: bool, rows: Path, left: float) -> Outcome:
    """Run one stage within its limit and the time that is left."""
    limit = STAGES[stage].limit
    if STAGES[stage].whole and dry:
        return Outcome(stage, "skipped", said="a dry run: tests/align/test_published.py covers it")
    if STAGES[stage].whole and (missing := missing_packages()):
        return Outcome(stage, "skipped", said=f"not installed: {', '.join(missing)}")
    if left < 5 and not dry:
        return Outcome(stage, "out of time", said="the six minutes are over")
    started = time.monotonic()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        ),
        "TRITON_INTERPRET": "1" if dry else "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # as many processes as cores
        "COLUMNS": "240",  # pytest's summary says why a test failed, if that fits into the line
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(stage, dry, rows), cwd=ROOT, env=environment, text=True,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            # a dry run may share its processor
            process.wait(timeout=10 * limit if dry else max(min(limit, left), 1))
            outcome = "passed" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
        _kill(process)
        log.seek(0)
        said = log.read()
    found = read_rows(rows, stage)
    if outcome == "passed" and any(row.get("verdict") == "failed" for row in found):
        outcome = "failed"
    last = [line for line in said.splitlines() if line.strip()][-1:]
    said = "".join(last)[:200] if outcome == "passed" else said[-6000:]
    return Outcome(stage, outcome, round(time.monotonic() - started, 1), found, said)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a stage and what it started: a compiler or a test process would disturb the times."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_rows(path: Path, stage: str) -> list[dict[str, Any]]:
    """The rows that a stage had written when it ended."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [
        {key: value for key, value in row.items() if key != "stage"}
        for row in rows
        if row["stage"] == stage
    ]


def missing_packages() -> list[str]:
    """What the stages that train need besides torch, triton, transformers and pytest."""
    needed = ("pydantic", "omegaconf", "hydra", "pyarrow", "PIL", "yaml", "diffusers")
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
        last = one.said.splitlines()[-1:]
        lines.append(f"{one.stage:16} {one.outcome:12} {one.seconds:6.1f} s  {''.join(last)}")
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
    if "device" not in machine() and not options.dry_run:
        print("gpu-check: torch sees no CUDA device; try --dry-run", file=sys.stderr)
        return 2
    check = Check(options.out, options.dry_run)
    check.run(options.stages)
    outcomes = [check.outcomes[name] for name in options.stages]
    print(table(outcomes))
    print(f"written: {check.result}")
    check.rows.unlink(missing_ok=True)
    return int(any(one.outcome in ("failed", "out of time") for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
