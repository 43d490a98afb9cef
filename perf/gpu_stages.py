"""The stages of `perf.gpu_check`, each a process: python -m perf.gpu_stages STAGE --out FOLDER [--dry-run]

A stage appends one JSON line per row to FOLDER/STAGE.jsonl, so that what it had found stays when its time is over. A
row has a `name`, mostly a `verdict` (`passed`, `failed`), and figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import reca_kernels as rk
import torch
from reca_kernels import Layout, dispatch, selfcheck
from torch import Tensor
from torch.nn import functional as F

Row = dict[str, Any]
_BENCH_SECONDS = 90
_STEPS = 100  # of each alignment
_LOSSES = 1e-3  # how far the two implementations' losses may be apart, as a share


class Stage:
    """Where the rows of a stage go, and on what it runs."""

    def __init__(self, path: Path, dry: bool, seed: int) -> None:
        self.dry, self.seed, self._path = dry, seed, path
        self.device = torch.device("cpu" if dry else "cuda")

    def row(self, name: str, passed: bool | None = None, **figures: object) -> None:
        """Write one row."""
        verdict = {} if passed is None else {"verdict": "passed" if passed else "failed"}
        found = {"name": name} | verdict | figures
        print(found, flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps(found) + "\n")

    def guarded(self, name: str, function: Callable[[], None]) -> None:
        """Run one part; an exception is a failed row."""
        try:
            function()
        except Exception as error:  # the other parts are still worth their time
            self.row(
                name, False, error=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            )

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
    ) -> Tensor:
        """A leaf of normally distributed numbers."""
        generator = torch.Generator(self.device).manual_seed(self.seed + len(shape) + shape[0])
        made = torch.randn(shape, generator=generator, device=self.device) * scale
        return made.to(dtype).requires_grad_()


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference as a share of the expected norm."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def attend(leaves: Sequence[Tensor], layout: Layout, how: Any) -> Tensor:
    """Block attention of q, k and v by the named implementation."""
    q, k, v = leaves
    return rk.block_attention(q, k, v, layout, implementation=how)


# ---- self-check ------------------------------------------------------------------------------------
def check_kernels(stage: Stage) -> None:
    """Every quantity of the package's own comparison, and what `auto` chooses when first asked under no_grad."""
    for kernel in selfcheck.KERNELS:
        worst: dict[str, selfcheck.Difference] = {}
        for one in selfcheck.differences(kernel, stage.device):
            if one.dtype not in worst or one.excess > worst[one.dtype].excess:
                worst[one.dtype] = one
        for dtype, one in worst.items():
            name = f"{kernel} {dtype}: {one.quantity}"
            stage.row(name, one.passed, excess=f"{one.excess:.1e}", allowed=one.allowed)
        if not stage.dry:
            dispatch.forget()
            with torch.no_grad():
                choice, reason = dispatch.automatic(kernel, torch.cuda.current_device())
            stage.row(f"auto: {kernel}", choice == "triton", choice=choice, reason=reason)


# ---- edges -----------------------------------------------------------------------------------------
_PACK = [[("pad", 9), ("causal", 40), ("full", 70)], [("full", 90), ("causal", 11), ("noise", 130)]]
_PACK_DRY = [[("full", 20), ("causal", 5), ("noise", 23)]]


def check_edges(stage: Stage) -> None:
    """Training's shapes against fp64, head widths that fill no tile, equal bits, graphs."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        stage.guarded(f"cross-entropy {dtype}", partial(_aligned, stage, dtype))
    for width in (16,) if stage.dry else (64, 80, 96, 128):
        stage.guarded(f"attention, heads of {width}", partial(_heads, stage, width))
    stage.guarded("equal bits", partial(_equal_bits, stage))
    stage.guarded("torch.compile, one graph", partial(_compiled, stage))
    if not stage.dry:
        stage.guarded("CUDA graph", partial(_captured, stage))


def _aligned(stage: Stage, dtype: torch.dtype) -> None:
    rows, width, ids = (64, 32, 96) if stage.dry else (2048, 1024, 8192)
    hidden = stage.normal(rows, width, dtype=dtype, scale=width**-0.5)
    weight = stage.normal(ids, width, dtype=dtype)
    targets = torch.arange(rows, device=stage.device) * 7 % ids
    targets[::5] = -100
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = F.cross_entropy(F.linear(exact[0], exact[1]), targets)
    wanted = torch.autograd.grad(truth, exact)

    def errors(loss: Tensor) -> list[float]:
        found = torch.autograd.grad(loss, (hidden, weight))
        return [relative(one, other) for one, other in zip(found, wanted, strict=True)]

    plain = errors(F.cross_entropy(F.linear(hidden, weight).float(), targets))
    hows: tuple[rk.Implementation, ...] = ("torch", "triton")
    for how in hows:
        ours = errors(rk.linear_cross_entropy(hidden, weight, targets, implementation=how))
        passed = all(a <= 1.5 * b + 1e-5 for a, b in zip(ours, plain, strict=True))
        shown = {"ours": _brief(ours), "eager": _brief(plain)}
        stage.row(f"cross-entropy {str(dtype)[6:]} {how}: gradients", passed, **shown)


def _brief(errors: list[float]) -> str:
    return " ".join(f"{one:.1e}" for one in errors)


def _heads(stage: Stage, width: int) -> None:
    layout = Layout.packed(_PACK_DRY if stage.dry else _PACK, stage.device)
    leaves = [stage.normal(layout.tokens, heads, width) for heads in (4, 2, 2)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    q, k, v = exact
    truth = selfcheck.plain_attention(q, k, v, layout.dense(), width**-0.5)
    incoming = stage.normal(*truth.shape).detach()
    wanted = [truth, *torch.autograd.grad(truth, exact, incoming.double())]
    found = {}
    for how in ("torch", "triton"):
        out = attend(leaves, layout, how)
        gradients = torch.autograd.grad(out, leaves, incoming)
        found[how] = [relative(a, b) for a, b in zip((out, *gradients), wanted, strict=True)]
    passed = all(a <= 1.5 * b + 1e-3 for a, b in zip(found["triton"], found["torch"], strict=True))
    shown = {how: _brief(errors) for how, errors in found.items()}
    stage.row(f"attention, heads of {width}: output, dq, dk, dv", passed, **shown)


def _equal_bits(stage: Stage) -> None:
    layout = Layout.packed(_PACK_DRY if stage.dry else _PACK * 20, stage.device)
    leaves = [stage.normal(layout.tokens, heads, 16 if stage.dry else 128) for heads in (7, 1, 1)]
    hidden, weight = stage.normal(64, 32), stage.normal(96, 32)
    targets = torch.arange(64, device=stage.device)
    first: list[Tensor] = []
    for _ in range(3):
        loss = rk.linear_cross_entropy(hidden, weight, targets, implementation="triton")
        out = attend(leaves, layout, "triton")
        found = [*torch.autograd.grad(loss, (hidden, weight))]
        found += torch.autograd.grad(out.float().square().sum(), leaves)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True)), "bits differ"
    stage.row("equal bits over three runs", True)


def _compiled(stage: Stage) -> None:
    layout = Layout.packed(_PACK_DRY if stage.dry else _PACK, stage.device)
    q = stage.normal(layout.tokens, 2, 16 if stage.dry else 64)

    def block(q: Tensor) -> Tensor:
        return rk.block_attention(q * 2, q, q, layout, implementation="triton").sin()

    backend = "aot_eager" if stage.dry else "inductor"
    graph = torch.compile(block, fullgraph=True, backend=backend)
    error = relative(graph(q), block(q))
    stage.row("torch.compile around attention, one graph", error < 1e-2, error=f"{error:.1e}")


def _captured(stage: Stage) -> None:
    hidden, weight = stage.normal(1024, 512, scale=512**-0.5), stage.normal(2048, 512)
    targets = torch.arange(1024, device=stage.device)
    call = partial(
        rk.linear_cross_entropy, hidden, weight, targets, all_valid=True, implementation="triton"
    )

    def step() -> list[Tensor]:
        loss = call()
        return [loss, *torch.autograd.grad(loss, (hidden, weight))]

    expected = step()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    equal = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    stage.row("a CUDA graph of cross-entropy with its gradients", equal)


# ---- addresses beyond 2^31 elements ------------------------------------------------------------------
def check_overflow(stage: Stage) -> None:
    """Weights, packs and heads-first views of more than 2^31 elements; about 30 GiB. Nothing in a dry run."""
    if stage.dry:
        stage.row("beyond 2^31 elements: tests/kernels/test_devices.py does it in the interpreter")
        return
    for name, part in {"weights": _far_weights, "pack": _far_pack, "heads": _far_heads}.items():
        stage.guarded(f"beyond 2^31: {name}", partial(part, stage))
        torch.cuda.empty_cache()


def _far_weights(stage: Stage) -> None:
    ids, width, rows = 1_100_000, 2048, 256
    weight = torch.empty(ids, width, dtype=torch.bfloat16, device=stage.device).normal_().div_(45)
    hidden, targets = (
        stage.normal(rows, width),
        torch.arange(rows, device=stage.device) + ids - rows,
    )
    expected = F.cross_entropy((hidden @ weight.T).float(), targets)
    for reduction in ("mean", "none"):
        loss = rk.linear_cross_entropy(
            hidden, weight, targets, reduction=reduction, implementation="triton"
        )
        error = abs(float(loss.mean() - expected)) / float(expected)
        stage.row(f"beyond 2^31: weights, {reduction}", error < 1e-3, error=f"{error:.1e}")


def _far_pack(stage: Stage) -> None:
    sample = [("full", 400), ("causal", 50), ("noise", 200)]
    layout, one = (
        Layout.packed([sample] * 1000, stage.device),
        Layout.packed([sample], stage.device),
    )
    leaves = [
        torch.empty(layout.tokens, heads, 128, dtype=torch.bfloat16, device=stage.device).normal_()
        for heads in (28, 4, 4)
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    last = [leaf.detach()[-one.tokens :].clone().requires_grad_() for leaf in leaves]
    out = attend(leaves, layout, "triton")
    expected = attend(last, one, "torch")
    incoming = torch.zeros_like(out)
    incoming[-one.tokens :] = 1
    found = [out[-one.tokens :]]
    found += [g[-one.tokens :] for g in torch.autograd.grad(out, leaves, incoming)]
    wanted = [expected, *torch.autograd.grad(expected, last, torch.ones_like(expected))]
    errors = [relative(a, b) for a, b in zip(found, wanted, strict=True)]
    stage.row("beyond 2^31: the last sample of a pack", max(errors) < 1e-2, errors=_brief(errors))


def _far_heads(stage: Stage) -> None:
    layout = Layout.packed([[("full", 400), ("causal", 50), ("noise", 200)]] * 1000, stage.device)
    room = torch.empty(28, layout.tokens + 60_000, 128, dtype=torch.bfloat16, device=stage.device)
    q = room.normal_()[:, : layout.tokens].transpose(0, 1)
    k = torch.empty(layout.tokens, 4, 128, dtype=torch.bfloat16, device=stage.device).normal_()
    with torch.no_grad():
        whole = rk.block_attention(q, k, k, layout, implementation="triton")[:, -1]
        one, key = q[:, -1:].contiguous(), k[:, -1:].contiguous()
        alone = rk.block_attention(one, key, key, layout, implementation="triton")[:, 0]
    stage.row(
        "beyond 2^31: heads first", torch.equal(whole, alone), error=f"{relative(whole, alone):.1e}"
    )


# ---- times -------------------------------------------------------------------------------------------
def bench(stage: Stage) -> None:
    """Forward and backward of every case and implementation of perf/kernels/cases.py, against the bound."""
    sys.path.insert(0, str(Path(__file__).parent / "kernels"))
    import cases as known

    tiny = [
        known.cross_entropy("tiny", 70, 32, 96),
        known.flow("tiny", 60, 32, 16),
        known.attention("tiny", [[("full", 20), ("causal", 5), ("noise", 23)]] * 2, 2, 1, 16),
    ]
    started = time.monotonic()
    for case in tiny if stage.dry else known.cases("cuda"):
        dtype = torch.float32 if stage.dry else torch.bfloat16
        leaves, steps = case.make(stage.device, dtype)
        bound = case.bounds()["H100"]
        for name, step in steps.items():
            if time.monotonic() - started > _BENCH_SECONDS:
                stage.row(f"{case.name}: {name}", outcome="no time left")
                continue
            if stage.dry and "flex" in name:
                continue  # it has no backward pass on a CPU
            stage.guarded(
                f"{case.name}: {name}", partial(_timed, stage, case.name, name, step, leaves, bound)
            )
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
    stage.row(
        f"{case}: {name}", forward_ms=round(forward, 3), total_ms=round(total, 3),
        of_h100_bound=f"{bound / total:.0%}", mib=round(peak),
    )  # fmt: skip


# ---- the families ------------------------------------------------------------------------------------
def align(stage: Stage) -> None:
    """One alignment of each family at scale tiny in bf16, with Triton and with torch: losses within 1e-3."""
    import tempfile

    from tests.align import published

    families: dict[str, tuple[str, str]] = {}
    for name, model, arm in published.arms():
        family = published.at_scale(name).models[model].family
        if arm == "reca":
            families.setdefault(family, (name, model))
    with tempfile.TemporaryDirectory() as folder:
        for family, (name, model) in families.items():
            stage.guarded(
                family, partial(_aligned_family, stage, Path(folder), family, name, model)
            )


def _aligned_family(stage: Stage, folder: Path, family: str, name: str, model: str) -> None:
    from reca.config.compose import load
    from tests.align import published

    losses = {}
    for how in ("torch", "triton"):
        words = ["scale=tiny", f"++models.{model}.network.options.implementation={how}"]
        experiment = load(name, words)
        published.at_scale = cache(lambda _, experiment=experiment: experiment)
        out = published.Rehearsal(folder / how).train(
            name, model, "reca", steps=_STEPS, precision="bf16"
        )
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses[how] = [sum(line["loss"].values()) for line in lines if "loss" in line]
    pairs = list(zip(losses["torch"], losses["triton"], strict=True))
    worst = max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)
    passed = len(pairs) == _STEPS and math.isfinite(worst) and worst <= _LOSSES
    stage.row(f"{family}: {len(pairs)} steps of {name}", passed, apart=f"{worst:.1e}")


def published_step(stage: Stage) -> None:
    """Two optimizer steps of Show-o's published recipe at full size: seconds and peak memory."""
    import tempfile

    from perf import published_step as step

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        sys.argv = ["published_step", "paper_showo_512", "--steps", "2", "--out", str(out)]
        step.main()
        for found in json.loads(out.read_text()):
            for number, one in enumerate(found["steps"], 1):
                gib = round(one["peak_bytes"] / 2**30, 1)
                seconds = round(one["seconds"], 2)
                stage.row(f"{found['experiment']}, step {number}", seconds=seconds, gib=gib)


STAGES: dict[str, Callable[[Stage], None]] = {
    "selfcheck": check_kernels,
    "edges": check_edges,
    "overflow": check_overflow,
    "bench": bench,
    "align": align,
    "step": published_step,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    stage = Stage(options.out / f"{options.stage}.jsonl", options.dry_run, options.seed)
    STAGES[options.stage](stage)


if __name__ == "__main__":
    main()
