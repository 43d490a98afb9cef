"""The check that a device must pass before `auto` uses Triton on it; `reca doctor` prints it.

The error of a kernel against fp64 may exceed that of plain torch in the same dtype by at most a
tolerance, for the output and every gradient. The shapes make the compiler build what training runs: sizes and strides
that 16 divides, rows selected or not, several tiles in each direction, heads of 64 and 128, with keys of their own or
shared ones; sums over selected rows for a vocabulary that 64 does not divide, too. The operators are called
without dispatch, so that dispatch.py can depend on this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from reca_kernels.language import current_device
from reca_kernels.layout import Layout
from reca_kernels.operators.attention import attended
from reca_kernels.operators.cross_entropy import linear_cross_entropy
from reca_kernels.operators.flow import flow_matching_loss
from reca_kernels.runtime import interpreted

TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
KERNELS = ("linear_cross_entropy", "flow_matching_loss", "block_attention")

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest excess of one quantity's error over that of plain torch, and the limit."""

    kernel: str
    dtype: str
    quantity: str
    excess: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the excess is within the limit; False for nan."""
        return self.excess <= self.allowed


def excess(kernel: Function, plain: Function, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Per quantity, the maximum of |kernel - truth| - |plain - truth|; truth is plain torch in fp64.

    `inputs` are leaf tensors, passed to both functions by name. Quantities are the output and the
    gradient of each input, for a fixed incoming gradient.
    """
    truth = _evaluated(plain, {name: t.double() for name, t in inputs.items()})
    ours, theirs = _evaluated(kernel, inputs), _evaluated(plain, inputs)
    return {
        name: _worst((ours[name].double() - t).abs() - (theirs[name].double() - t).abs())
        for name, t in truth.items()
    }


def _worst(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _evaluated(function: Function, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and the gradient of every input, by name, for a fixed incoming gradient."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out = function(**leaves)
    generator = torch.Generator().manual_seed(1)
    # small enough that the last digit of a 16-bit gradient is below the tolerance
    incoming = torch.randn(out.shape, generator=generator, dtype=torch.float64) / 4
    gradients = torch.autograd.grad(out, tuple(leaves.values()), incoming.to(out))
    return {"output": out.detach()} | dict(zip(leaves, gradients, strict=True))


def differences(kernel: str, device: torch.device) -> Iterator[Difference]:
    """Compare Triton with plain torch on `device`, current or not, per type and quantity."""
    for dtype, allowed in TOLERANCE.items():
        for case, make in _CASES[kernel].items():
            with current_device(device):
                excesses = excess(*make(dtype, device))
            for quantity, value in excesses.items():
                name = f"{quantity} ({case})"
                yield Difference(kernel, str(dtype).removeprefix("torch."), name, value, allowed)


def first_difference(kernel: str, device: torch.device) -> str | None:
    """A description of the first quantity that fails on this device; None if all match the reference."""
    for one in differences(kernel, device):
        if not one.passed:
            return (
                f"{one.quantity} in {one.dtype} has an error {one.excess:.2e} above that of plain torch; "
                f"{one.allowed:.0e} is allowed"
            )
    return None


def _random(
    dtype: torch.dtype, device: torch.device, **shapes: tuple[int, ...]
) -> dict[str, Tensor]:
    """Normally distributed tensors of the given shapes, by name, such that products over a last axis are of order 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.25).to(device, dtype)
        for name, shape in shapes.items()
    }


_Case = tuple[Function, Function, dict[str, Tensor]]


def _times() -> int:
    """How many times larger than in the interpreter the sizes are, as the tiles are."""
    return 1 if interpreted() else 4


def _cross_entropy(
    all_rows: bool, summed: bool, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> _Case:
    rows, width, vocabulary = 96 * _times(), 64 * _times(), vocabulary * _times()
    # a slice that 64 divides, and one that 16 does not
    start, stop = (0, vocabulary) if all_rows else (5, vocabulary - 10)
    inputs = _random(
        dtype, device, hidden=(rows, width), weight=(vocabulary, width), bias=(vocabulary,)
    )
    inputs["bias"] = inputs["bias"] / 4
    targets = torch.arange(rows, device=device) * 7 % (stop - start) + start
    if not all_rows:
        targets[::7] = -100
    reduction = "sum" if summed else "none"
    options = (None if all_rows else -100, start, stop, 0.0, reduction, "triton", [True] * 3)

    def scaled(losses: Tensor) -> Tensor:
        return losses / 8 if summed else losses

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return scaled(linear_cross_entropy(hidden, weight, bias, targets, *options)[0])

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(hidden, weight[start:stop], bias[start:stop])
        local = torch.where(targets < 0, targets, targets - start)
        return scaled(F.cross_entropy(logits, local, reduction=reduction))

    return ours, plain, inputs


def _flow(all_rows: bool, dtype: torch.dtype, device: torch.device) -> _Case:
    rows, width, channels = 96 * _times(), 64 * _times(), 16 * _times()
    inputs = _random(
        dtype, device, hidden=(rows, width), weight=(channels, width), bias=(channels,)
    )
    data = _random(torch.float32, device, clean=(rows, channels), noise=(rows, channels))
    clean, noise = data.values()
    mask = None if all_rows else torch.arange(rows, device=device) % 3 > 0

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        arguments = (hidden, weight, bias, clean, noise, mask, "none", "triton", [True] * 3)
        return flow_matching_loss(*arguments)[0]

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        velocity = F.linear(hidden, weight, bias)
        losses = (velocity - (noise - clean).to(velocity.dtype)).square().mean(-1)
        return losses if mask is None else losses * mask

    return ours, plain, inputs


def _attention(
    width: int, share: int, long: bool, dtype: torch.dtype, device: torch.device
) -> _Case:
    times = 1 if interpreted() else 15  # so long that tiles begin with their samples
    first = [("pad", 3 * times), ("causal", 9 * times), ("full", 17 * times)]
    second = [
        ("open", 8 * times), ("hidden", 2 * times), ("causal", 5 * times), ("noise", 15 * times),
        ("causal", 3),
    ]  # fmt: skip
    samples = [first, second, [("hidden", 7)]]
    if long:  # its tiles are others
        samples = [[*first, ("noise", 17 * times if interpreted() else 1700)]]
    layout = Layout.packed(samples, device)
    tokens, heads = layout.tokens, 2 if interpreted() else 4
    inputs = _random(
        dtype, device, q=(tokens, heads, width), k=(tokens, heads // share, width),
        v=(tokens, heads // share, width),
    )  # fmt: skip

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attended(q, k, v, layout, 1.0, "triton")

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain_attention(q, k, v, layout.dense(), 1.0)

    return ours, plain, inputs


def plain_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Reference attention [Q, H, E] for q [Q, H, E], k, v [T, K, E]; rows of `seen` [Q, T] without a key give 0."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.einsum("qhe,khe->hqk", q, k) * scale
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights * seen.any(1)[:, None], v)


_CASES: dict[str, dict[str, Callable[[torch.dtype, torch.device], _Case]]] = {
    "linear_cross_entropy": {
        "a sum over all rows": partial(_cross_entropy, True, True, 160),
        "a sum over selected rows": partial(_cross_entropy, False, True, 1100),
        "selected rows": partial(_cross_entropy, False, False, 160),
    },
    "flow_matching_loss": {
        "all rows": partial(_flow, True), "selected rows": partial(_flow, False),
    },
    "block_attention": {
        "heads of 64": partial(_attention, 64, 2, False),
        "heads of 64 with keys of their own": partial(_attention, 64, 1, False),
        "heads of 128": partial(_attention, 128, 2, False),
        "heads of 128 in a long sample": partial(_attention, 128, 2, True),
    },
}  # fmt: skip
