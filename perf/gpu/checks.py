"""What `perf.gpu_check` checks on the device: the self-check, edges, graphs, addresses beyond 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import reca_kernels as rk
import torch
from reca_kernels import Layout, dispatch, selfcheck
from torch import Tensor
from torch.nn import functional as F

from perf.gpu.rows import Stage, attend, brief, relative


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
    """Training's shapes against fp64, head widths that fill no tile, equal bits."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        stage.guarded(f"cross-entropy {dtype}", partial(_aligned, stage, dtype))
    for width in (16,) if stage.dry else (64, 80, 96, 128):
        stage.guarded(f"attention, heads of {width}", partial(_heads, stage, width))
    stage.guarded("equal bits", partial(_equal_bits, stage))


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
        shown = {"ours": brief(ours), "eager": brief(plain)}
        stage.row(f"cross-entropy {str(dtype)[6:]} {how}: gradients", passed, **shown)


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
    shown = {how: brief(errors) for how, errors in found.items()}
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


# ---- graphs ------------------------------------------------------------------------------------------
def check_graphs(stage: Stage) -> None:
    """Each function in one graph of torch.compile and in a CUDA graph, with equal results; waits for the device."""
    for name in ("cross-entropy", "flow", "attention"):
        stage.guarded(f"torch.compile: {name}", partial(_compiled, stage, name))
    stage.guarded("FSDP2", partial(_sharded, stage))
    if stage.dry:
        return
    for name in ("cross-entropy", "flow", "attention"):
        stage.guarded(f"CUDA graph: {name}", partial(_captured, stage, name))
        stage.guarded(f"waits: {name}", partial(_waits, stage, name))


def _calls(stage: Stage, name: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Leaves, and a block around one function as a model has it; no number of rows depends on data."""
    if name == "attention":
        layout = Layout.packed(_PACK_DRY if stage.dry else _PACK, stage.device)
        width = 16 if stage.dry else 128
        leaves = [stage.normal(layout.tokens, heads, width) for heads in (4, 2, 2)]
        return (
            leaves,
            lambda q, k, v: (
                rk.block_attention(q * 2, k, v, layout, implementation="triton")
                .float()
                .square()
                .mean()
            ),
        )
    rows, width, ids = (32, 32, 48) if stage.dry else (1024, 512, 2048)
    channels = 16 if stage.dry else 64
    hidden = stage.normal(rows, width, scale=width**-0.5)
    if name == "flow":
        data = [stage.normal(rows, channels, dtype=torch.float32).detach() for _ in range(2)]
        leaves = [hidden, stage.normal(channels, width)]
        return leaves, lambda x, w: rk.flow_matching_loss(
            x.tanh(), w, None, data[0], data[1] / 2, implementation="triton"
        )
    targets = torch.arange(rows, device=stage.device) % ids
    return [hidden, stage.normal(ids, width)], lambda x, w: rk.linear_cross_entropy(
        x.tanh(), w, targets, all_valid=True, implementation="triton"
    )


def _results(call: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves)]


def _compiled(stage: Stage, name: str) -> None:
    leaves, call = _calls(stage, name)
    backend = "aot_eager" if stage.dry else "inductor"
    graph = torch.compile(call, fullgraph=True, backend=backend)
    pairs = zip(_results(graph, leaves), _results(call, leaves), strict=True)
    errors = [relative(one, other) for one, other in pairs]
    stage.row(f"torch.compile: {name}, one graph", max(errors) < 1e-2, errors=brief(errors))


def _captured(stage: Stage, name: str) -> None:
    leaves, call = _calls(stage, name)
    expected = _results(call, leaves)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _results(call, leaves)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _results(call, leaves)
    for one in found:
        one.zero_()
    graph.replay()
    torch.cuda.synchronize()
    equal = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    stage.row(f"CUDA graph: {name}, forward and backward, equal bits", equal)


def _waits(stage: Stage, name: str) -> None:
    """Torch reports every wait of its own as an error; a first call lists tiles and compiles."""
    leaves, call = _calls(stage, name)
    _results(call, leaves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _results(call, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stage.row(f"waits: {name}, none in both passes", True)


def _sharded(stage: Stage) -> None:
    """A head whose weights FSDP2 gathers, eager and compiled, gives the loss of one that is whole."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    width, ids = (32, 64) if stage.dry else (256, 1024)

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(width, ids, device=stage.device, dtype=torch.bfloat16)

        def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
            weight, bias = self.linear.weight, self.linear.bias
            return rk.linear_cross_entropy(
                hidden, weight, targets, bias, all_valid=True, implementation="triton"
            )

    hidden, targets = stage.normal(width, width), torch.arange(width, device=stage.device)
    torch.manual_seed(stage.seed)
    head = Head()
    expected = head(hidden, targets)
    wanted = torch.autograd.grad(expected, (hidden, *head.parameters()))
    backend = "gloo" if stage.dry else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(head)
        compiled = torch.compile(head, backend="aot_eager" if stage.dry else "inductor")
        calls: dict[str, Callable[..., Tensor]] = {"eager": head, "compiled": compiled}
        for name, call in calls.items():
            head.zero_grad()
            hidden.grad = None
            loss = call(hidden, targets)
            loss.backward()
            sharded: list[Any] = [weight.grad for weight in head.parameters()]
            found = [hidden.grad, *(gradient.full_tensor() for gradient in sharded)]
            errors = [relative(a, b) for a, b in zip(found, wanted, strict=True) if a is not None]
            passed = relative(loss.detach(), expected.detach()) < 1e-3 and max(errors) < 1e-2
            stage.row(f"FSDP2, {name}: loss and gradients", passed, errors=brief(errors))
    finally:
        dist.destroy_process_group()


# ---- addresses beyond 2^31 elements ------------------------------------------------------------------
def far(name: str, stage: Stage) -> None:
    """Weights, a pack or a heads-first view of more than 2^31 elements, up to 30 GiB. Nothing in a dry run."""
    if stage.dry:
        stage.row("beyond 2^31 elements: tests/kernels/test_devices.py does it in the interpreter")
        return
    part = {"weights": _far_weights, "pack": _far_pack, "heads": _far_heads}[name]
    stage.guarded(f"beyond 2^31: {name}", partial(part, stage))


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
    stage.row("beyond 2^31: the last sample of a pack", max(errors) < 1e-2, errors=brief(errors))


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
