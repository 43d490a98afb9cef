"""Measure every operation on the device at hand, and write CSV files and a plot.

    python perf/kernels/run.py --out docs/results/kernels

On a GPU: Triton against torch eager, torch.compile, SDPA, flex_attention, Liger and
cut-cross-entropy (the last two if installed). On a CPU: the torch implementations against naive
torch, and what can be determined about the Triton kernels without a GPU: `static.csv` (each kernel compiled for
each target: registers, spills, shared memory, occupancy, tensor-core instructions) and `traffic.csv`
(bytes moved, counted in the interpreter, against the minimum). Each measurement runs in a separate
process, in rounds over all implementations; times are medians (on a CPU of process time, one thread;
small cases seven times after one warm-up call, so that work done once per batch by a layout is not
counted; cases above 100 GFLOP once).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import GPUS, cases

HERE = Path(__file__).resolve().parent


def machine() -> str:
    """The device name and torch's version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = found.get("model name", platform.processor())
    model = f" (family {found.get('cpu family')}, model {found.get('model')})" if found else ""
    return f"{name}{model}, one thread, torch {torch.__version__}"


# ---- one measurement, in a process of its own ----------------------------------------------------
def measure(index: int, implementation: str) -> dict[str, float | str]:
    """Milliseconds of forward and of both passes, and the peak increase of memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    case = cases(device.type)[index]
    leaves, steps = case.make(device, dtype)
    step = steps[implementation]
    if device.type == "cuda":
        return _on_gpu(step, leaves)
    _warm_up()
    if (
        case.flops < 2e10 and "flex" not in implementation
    ):  # a first call does not represent the cost of a layer
        step().sum().backward()
        calls = [_on_cpu(step) for _ in range(7)]
        found = {key: statistics.median(call[key] for call in calls) for key in calls[0]}
        if found["peak_mib"] < 1:  # the allocator had cached enough from the first call
            del found["peak_mib"]
        return found
    return _on_cpu(step)


def _warm_up() -> None:
    """Let torch's libraries allocate their persistent buffers, so that these are not counted below."""
    x = torch.randn(64, 64, requires_grad=True)
    torch.nn.functional.cross_entropy(x @ x.detach(), torch.zeros(64).long()).backward()


def _on_cpu(step: Callable[[], Any]) -> dict[str, float | str]:
    before, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _resident() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found: dict[str, float | str] = {}
    try:
        start = time.process_time()
        out = step()
        found["forward_ms"] = (time.process_time() - start) * 1e3
        out.sum().backward()
        found["total_ms"] = (time.process_time() - start) * 1e3
    except NotImplementedError as error:  # flex_attention on a CPU
        found["note"] = str(error).split(".")[0]
        with torch.no_grad():
            start = time.process_time()
            step()
            found["forward_ms"] = (time.process_time() - start) * 1e3
    done.set()
    watcher.join()
    return found | {"peak_mib": peak[0] / 2**20}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _on_gpu(step: Callable[[], Any], leaves: list[Any]) -> dict[str, float | str]:
    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        step().sum().backward()

    for _ in range(3):
        both()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both()
    peak = torch.cuda.max_memory_allocated() - before
    return {
        "forward_ms": _events(step), "total_ms": _events(both), "peak_mib": peak / 2**20,
    }  # fmt: skip


def _events(call: Callable[[], Any], count: int = 20) -> float:
    times = []
    for _ in range(count):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


# ---- all measurements ----------------------------------------------------------------------------
def measured(rounds: int) -> list[dict[str, Any]]:
    """One row per case and implementation, with times and roofline bounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    for index, case in enumerate(cases(device)):
        names = list(case.make(torch.device(device), dtype)[1])
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds if device == "cuda" or case.flops < 1e11 else 1):
            for name in names:
                runs[name].append(_alone(index, name))
        for name, found in runs.items():
            row = {"operation": case.operation, "case": case.name, "implementation": name}
            for key in ("forward_ms", "total_ms", "peak_mib"):
                values = [run[key] for run in found if key in run]
                row[key] = f"{statistics.median(values):.4g}" if values else ""
            row["note"] = found[0].get("note", "")
            row |= {
                "gflop": f"{case.flops / 1e9:.4g}",
                "least_mib": f"{case.elements * 4 / 2**20:.4g}",
            }
            row |= {f"{gpu}_bound_ms": f"{ms:.3g}" for gpu, ms in case.bounds().items()}
            row |= {"bound_by": case.bound_by(), "machine": machine()}
            print({k: v for k, v in row.items() if k != "machine"}, flush=True)
            rows.append(row)
    return rows


def _alone(index: int, name: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "run.py"), "--one", str(index), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        return {"note": "took more than ten minutes"}
    if done.returncode:
        return {"note": done.stderr.strip().splitlines()[-1][:120]}
    return json.loads(done.stdout.splitlines()[-1])


def without_gpu(script: str, *arguments: str, interpret: bool) -> list[dict[str, Any]]:
    """Rows of static.py or traffic.py, which need different interpreter settings."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, str(HERE / script), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file with the union of the rows' keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Time and peak memory of each case, relative to the first implementation of the case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        row for row in rows if row["total_ms"]
    ]  # implementations without a backward pass are only in the CSV
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 0.4 * len(rows) + 1.5), sharey=True)
    labels, firsts = [], {}
    for place, row in enumerate(rows):
        labels.append(f"{row['case']}: {row['implementation']}")
        first = firsts.setdefault(row["case"], row)
        colour = "tab:blue" if row["implementation"].startswith("reca") else "tab:gray"
        for axis, key in zip(axes, ("total_ms", "peak_mib"), strict=True):
            if row[key] and first[key]:
                value = float(row[key]) / float(first[key])
                axis.barh(place, value, color=colour)
                axis.text(value, place, f" {row[key]}", va="center", fontsize=7)
    axes[0].set_yticks(range(len(rows)), labels, fontsize=7)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("time relative to the case's first (label: ms)")
    axes[1].set_xlabel("peak memory, relative (label: MiB)")
    figure.suptitle(rows[0]["machine"], fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run one measurement for the parent process, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/kernels"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--one", nargs=2, metavar=("CASE", "IMPLEMENTATION"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(int(options.one[0]), options.one[1])))
        return
    print(
        "roofline for", ", ".join(f"{n}: {p:.3g} op/s, {b:.3g} B/s" for n, (p, b) in GPUS.items())
    )
    options.out.mkdir(parents=True, exist_ok=True)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        write(options.out / "static.csv", without_gpu("static.py", interpret=False))
        write(options.out / "traffic.csv", without_gpu("traffic.py", interpret=True))
    rows = measured(options.rounds)
    write(options.out / f"{device}.csv", rows)
    plot(options.out / f"{device}.png", rows)


if __name__ == "__main__":
    main()
