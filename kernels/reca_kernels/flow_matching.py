"""Flow-matching loss: velocity head and squared error in one, without velocity or target in memory.

Reads top to bottom: the face, the torch implementation (chunks of rows), the Triton kernels, their
autograd wrapper. Letters: N rows, M rows that carry a loss, D width, C channels of a row.
Source: reference/bagel/SPEC.md section 3.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reca_kernels.choice import Implementation, chosen
from reca_kernels.inputs import autocast, check_linear, check_reduction, reduced

_CHUNK_ROWS = 1024


def flow_matching_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    implementation: Implementation = "auto",
) -> Tensor:
    """Squared error of the velocity `hidden @ weight.T + bias` to its target `noise - clean`.

    `hidden` [..., D], `weight` [C, D], `bias` [C] or None, `clean` and `noise` [..., C] (data: no
    gradient flows to them), `mask` bool [...]: the rows that carry a loss (None: all). A row's loss
    is the mean over its C channels, fp32 (fp64 for fp64 inputs): "none" gives [...] with 0 outside
    the mask, "sum" their sum, "mean" the sum divided by the number of rows; with no row loss and
    gradients are 0. For a noise prediction (target `noise`) give zeros as `clean`. Gradients reach
    hidden, weight and bias, once. ValueError on shapes, types or devices that do not go together.
    """
    rows = _check(hidden, weight, bias, clean, noise, mask)
    check_reduction(reduction)
    hidden, weight, bias = autocast(hidden, weight, bias)
    flat = hidden.reshape(-1, hidden.shape[-1])
    data = [t.reshape(-1, t.shape[-1]) for t in (clean, noise)]
    which = chosen("flow_matching_loss", implementation, hidden)
    function = _Triton if which == "triton" else _Torch
    losses = function.apply(flat, weight, bias, *data, rows, reduction)
    return reduced(losses, rows, hidden.shape[:-1], reduction)


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
) -> Tensor | None:
    """The rows [M] that carry a loss; None: all."""
    check_linear("flow_matching_loss", hidden, weight, bias)
    expected = (*hidden.shape[:-1], weight.shape[0])
    for name, given in (("clean", clean), ("noise", noise)):
        if tuple(given.shape) != expected or given.device != hidden.device:
            raise ValueError(
                f"flow_matching_loss: {name} must be {list(expected)} on {hidden.device}, "
                f"not {list(given.shape)} on {given.device}"
            )
        if given.requires_grad:
            raise ValueError(f"flow_matching_loss: {name} is data; detach it, no gradient flows to it")
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != hidden.shape[:-1]:
        raise ValueError(
            f"flow_matching_loss: mask must be bool {list(hidden.shape[:-1])}, "
            f"not {mask.dtype} {list(mask.shape)}"
        )
    return mask.reshape(-1).nonzero().squeeze(1)


# ---- torch: chunks of rows; the gradient of a scalar loss is made on the way forward -------------
class _Torch(torch.autograd.Function):
    """The lean implementation: one chunk of velocities alive."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        clean: Tensor,
        noise: Tensor,
        rows: Tensor | None,
        reduction: str,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, clean, noise, rows)
        count = len(hidden) if rows is None else len(rows)
        ctx.scale = 1 / max(count, 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        needs = ctx.needs_input_grad[:3] if ctx.scalar else (False,) * 3
        losses, ctx.gradients = _chunked(
            hidden, weight, bias, clean, noise, rows, None, needs, ctx.scale
        )
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Hand out the gradients that forward made; make them (again) where it could not."""
        gradients, ctx.gradients = ctx.gradients, None
        if not ctx.scalar or gradients is None:
            by_row = None if ctx.scalar else incoming
            needs = ctx.needs_input_grad[:3]
            _, gradients = _chunked(*ctx.saved_tensors, by_row, needs, ctx.scale)
        if ctx.scalar and float(incoming) != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(incoming)
        return (*gradients, None, None, None, None)


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    rows: Tensor | None,
    by_row: Tensor | None,
    needs: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Losses [M] and, where `needs` says so, gradients of hidden, weight and bias times `scale`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    channels, count = weight.shape[0], len(hidden) if rows is None else len(rows)
    losses = torch.empty(count, dtype=wide, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(channels, dtype=wide, device=weight.device) if needs[2] else None
    for first in range(0, count, _CHUNK_ROWS):
        part = slice(first, min(first + _CHUNK_ROWS, count))
        chosen_rows = part if rows is None else rows[part]
        x = hidden[chosen_rows]
        residual = torch.nn.functional.linear(x, weight, bias).to(wide)
        residual = residual - noise[chosen_rows].to(wide) + clean[chosen_rows].to(wide)
        losses[part] = residual.square().mean(1)
        residual.mul_(2 / channels)
        if by_row is not None:
            residual.mul_(by_row[part].unsqueeze(1))
        if d_bias is not None:
            d_bias += residual.sum(0)
        residual = residual.to(hidden.dtype)
        if d_hidden is not None:
            d_hidden[chosen_rows] = (residual @ weight).mul_(scale)
        if d_weight is not None:
            d_weight += residual.T @ x
    return losses, (
        d_hidden,
        None if d_weight is None else d_weight.mul_(scale).to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(scale).to(bias.dtype),
    )
