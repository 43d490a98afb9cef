"""Inputs of the kernel tests, and the criterion: no worse than plain torch in the same type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from reca_kernels.selfcheck import TOLERANCE, excess
from torch import Tensor
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATED = 20 if DEVICE == "cuda" else 4  # the interpreter takes blocks one after another
TYPES = tuple(TOLERANCE)


def seed_of(*what: object) -> int:
    """A seed that depends on the case only (Python's own hash of text changes per process)."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(repr(what))) % 2**31


def normal(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_no_worse(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], **inputs: Tensor
) -> None:
    """|ours - fp64| <= |plain - fp64| + tolerance of the type, for the output and each gradient."""
    allowed = TOLERANCE[next(iter(inputs.values())).dtype]
    for name, value in excess(ours, plain, inputs).items():
        assert value <= allowed, f"{name} errs by {value:.2e} more than plain torch"


def plain_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    vocab: tuple[int, int] | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """As torch writes it, with 0 instead of nan where no row has a target."""
    start, stop = vocab or (0, weight.shape[0])
    logits = F.linear(hidden, weight[start:stop], None if bias is None else bias[start:stop])
    local = torch.where(targets == -100, targets, targets - start)
    losses = F.cross_entropy(
        logits.flatten(0, -2), local.flatten(), label_smoothing=label_smoothing, reduction="none"
    )
    if reduction == "none":
        return losses.view(targets.shape)
    count = int((targets != -100).sum())
    return losses.sum() / max(count, 1) if reduction == "mean" else losses.sum()


def plain_flow(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The definition: mean square over channels, over the rows of the mask."""
    velocity = F.linear(hidden, weight, bias)
    rows = (velocity - (noise - clean).to(velocity.dtype)).square().mean(-1)
    mask = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
    rows = rows * mask
    if reduction == "none":
        return rows
    return rows.sum() / max(int(mask.sum()), 1) if reduction == "mean" else rows.sum()
