"""The check that a device must pass before `auto` uses Triton on it; `reca doctor` prints it.

The error of a kernel against fp64 may exceed that of plain torch in the same dtype by at most a
tolerance, for the output and every gradient. The Triton functions are called directly, so that
dispatch.py can depend on this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from reca_kernels import attention, cross_entropy, flow
from reca_kernels.inputs import reduced
from reca_kernels.layout import Layout

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
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            excesses = excess(*_CASES[kernel](dtype, device))
        for quantity, value in excesses.items():
            yield Difference(kernel, str(dtype).removeprefix("torch."), quantity, value, allowed)


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
    """Normally distributed tensors of the given shapes, by name, scaled by 1 / sqrt(last axis)."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(device, dtype)
        for name, shape in shapes.items()
    }


_Case = tuple[Function, Function, dict[str, Tensor]]


def _cross_entropy(dtype: torch.dtype, device: torch.device) -> _Case:
    inputs = _random(dtype, device, hidden=(150, 72), weight=(300, 72), bias=(300,))
    targets = torch.arange(150, device=device) + 90
    targets[::7] = -100
    rows, vocab = (targets >= 0).nonzero().squeeze(1), (85, 290)

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        losses = cross_entropy.Triton.apply(
            hidden, weight, bias, rows, targets[rows] - vocab[0], vocab, 0.0, "none"
        )
        return reduced(losses, rows, targets.shape, "none")

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(hidden, weight[slice(*vocab)], bias[slice(*vocab)])
        local = torch.where(targets < 0, targets, targets - vocab[0])
        return F.cross_entropy(logits, local, reduction="none")

    return ours, plain, inputs


def _flow(dtype: torch.dtype, device: torch.device) -> _Case:
    inputs = _random(dtype, device, hidden=(150, 72), weight=(20, 72), bias=(20,))
    clean, noise = _random(torch.float32, device, clean=(150, 20), noise=(150, 20)).values()
    mask = torch.arange(150, device=device) % 3 > 0
    rows = mask.nonzero().squeeze(1)

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        losses = flow.Triton.apply(hidden, weight, bias, clean, noise, rows, "none")
        return reduced(losses, rows, mask.shape, "none")

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        velocity = F.linear(hidden, weight, bias)
        return (velocity - (noise - clean).to(velocity.dtype)).square().mean(-1) * mask

    return ours, plain, inputs


def _attention(dtype: torch.dtype, device: torch.device) -> _Case:
    first = [("pad", 5), ("causal", 30), ("full", 60)]
    second = [("open", 30), ("hidden", 5), ("causal", 10), ("noise", 50), ("causal", 3)]
    layout = Layout.packed([first, second, [("hidden", 6)]], device)
    tokens = layout.tokens
    inputs = _random(dtype, device, q=(tokens, 2, 64), k=(tokens, 1, 64), v=(tokens, 1, 64))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.Triton.apply(q, k, v, layout, 1.0)

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


_CASES = {
    "linear_cross_entropy": _cross_entropy,
    "flow_matching_loss": _flow,
    "block_attention": _attention,
}
