"""One stage of `perf.gpu_check`, a process: python -m perf.gpu.stages STAGE --rows FILE [--dry-run]."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from perf.gpu import checks, runs
from perf.gpu.rows import Stage
from perf.gpu_check import FAMILIES

STAGES: dict[str, Callable[[Stage], None]] = {
    "selfcheck": checks.check_kernels,
    "edges": checks.check_edges,
    "graphs": checks.check_graphs,
    **{f"far_{name}": partial(checks.far, name) for name in ("weights", "pack", "heads")},
    **{f"align_{family}": partial(runs.align, family) for family in FAMILIES},
    "bench_losses": runs.bench_losses,
    "bench_attention": runs.bench_attention,
    "step": runs.published_step,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--rows", type=Path, required=True, help="file that rows are appended to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    STAGES[options.stage](Stage(options.stage, options.rows, options.dry_run, options.seed))


if __name__ == "__main__":
    main()
