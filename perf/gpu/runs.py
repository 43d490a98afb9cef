"""What `perf.gpu_check` runs on the device: times of the kernels, an alignment of each family, a published step."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf.gpu.rows import Stage, device_ms
from perf.kernels import cases as known

# as many rows per minute as the limits of the stages allow; flex_attention and torch.compile take 5 to 20 s to compile
_SECONDS = {"bench_losses": 54, "bench_attention": 69}
STEPS = 100  # of each alignment
APART = 1e-3  # how far the two implementations' losses may be apart, as a share
# family -> the published experiment that is aligned at scale tiny, and its model
EXPERIMENTS = {
    "showo": ("paper_showo_512", "showo_clip_512"),
    "harmon": ("paper_harmon_05b", "harmon_05b"),
    "bagel": ("paper_bagel", "bagel_7b"),
    "openuni": ("paper_openuni_b", "openuni_b_512"),
    "janus": ("janus_pro_1b", "janus_pro_1b"),
}
# fields of a recipe that would take too long: Janus' sixteen micro-batches, twice over 100 steps, took three minutes
CHANGED: dict[str, dict[str, Any]] = {"janus": {"accumulation": 4}}


# ---- times -------------------------------------------------------------------------------------------
def bench_losses(stage: Stage) -> None:
    """Forward and backward of every loss and implementation of perf/kernels/cases.py, against the bound."""
    tiny = [known.cross_entropy("tiny", 70, 32, 96), known.flow("tiny", 60, 32, 16)]
    losses = [case for case in known.cases("cuda") if case.operation != "block_attention"]
    _bench(stage, tiny if stage.dry else losses)


def bench_attention(stage: Stage) -> None:
    """The same for attention, with BAGEL's and Show-o's real heads."""
    tiny = [known.attention("tiny", [[("full", 20), ("causal", 5), ("noise", 23)]] * 2, 2, 1, 16)]
    attention = [case for case in known.cases("cuda") if case.operation == "block_attention"]
    _bench(stage, tiny if stage.dry else attention)


def _bench(stage: Stage, cases: Sequence[known.Case]) -> None:
    started = time.monotonic()
    for case in cases:
        dtype = torch.float32 if stage.dry else torch.bfloat16
        leaves, steps = case.make(stage.device, dtype)
        bound = case.bounds()["H100"]
        # what compiles for long comes last, so that a slow compiler costs its own rows only
        for name in sorted(steps, key=lambda name: "flex" in name or "compile" in name):
            if not stage.dry and time.monotonic() - started > _SECONDS[stage.name]:
                stage.row(f"{case.name}: {name}", outcome="no time left")
                continue
            if stage.dry and "flex" in name:
                continue  # it has no backward pass on a CPU
            part = partial(_timed, stage, case.name, name, steps[name], leaves, bound)
            stage.guarded(f"{case.name}: {name}", part)
        del leaves, steps
        if not stage.dry:
            torch.cuda.empty_cache()


def _timed(
    stage: Stage,
    case: str,
    name: str,
    step: Callable[[], Tensor],
    leaves: list[Tensor],
    bound: float,
) -> None:
    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        out = step()
        out.backward(torch.ones_like(out))

    both()
    if stage.dry:
        stage.row(f"{case}: {name}")
        return
    import triton

    median = partial(triton.testing.do_bench, warmup=10, rep=60, return_mode="median")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    forward, total = median(step), median(both)
    device = device_ms(both)
    stage.row(
        f"{case}: {name}", forward_ms=round(forward, 3), total_ms=round(total, 3),
        device_ms=round(device, 3), of_h100_bound=f"{bound / device:.0%}", mib=round(peak),
    )  # fmt: skip


# ---- the families ------------------------------------------------------------------------------------
def align(family: str, stage: Stage) -> None:
    """One alignment at scale tiny in bf16, with Triton and with torch: losses within 1e-3 over 100 steps."""
    with tempfile.TemporaryDirectory() as folder:
        stage.guarded(family, partial(_aligned, stage, Path(folder), family))


def _aligned(stage: Stage, folder: Path, family: str) -> None:
    from tests.align.published import Rehearsal

    name, model = EXPERIMENTS[family]
    steps = 2 if stage.dry else STEPS
    rehearsal = Rehearsal(folder)

    def losses(how: str) -> list[float]:
        options = {"implementation": how}
        changed = {"steps": steps, "precision": "bf16"} | CHANGED.get(family, {})
        out = rehearsal.train(name, model, "reca", options, **changed)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [sum(line["loss"].values()) for line in lines if "loss" in line]

    plain, ours = losses("torch"), losses("triton")
    apart = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(plain, ours, strict=True)]
    figures: dict[str, Any] = {
        "first": f"{apart[0]:.1e}", "mean": f"{sum(apart) / len(apart):.1e}",
        "worst": f"{max(apart):.1e}", "last_loss": round(plain[-1], 5),
    }  # fmt: skip
    passed = len(apart) == steps and math.isfinite(sum(apart)) and max(apart) <= APART
    stage.row(f"{family}: losses of {len(apart)} steps of {name}", passed, **figures)


def published_step(stage: Stage) -> None:
    """Two optimizer steps of Show-o's published recipe at full size: seconds and peak memory."""
    from perf.published_step import Run

    name, model = EXPERIMENTS["showo"]
    for number, one in enumerate(Run(name, model, None, None).steps(2), 1):
        gib = round(one["peak_bytes"] / 2**30, 1)
        stage.row(f"{name}, step {number}", seconds=round(one["seconds"], 2), gib=gib)
