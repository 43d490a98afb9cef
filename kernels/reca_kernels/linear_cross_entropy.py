"""Linear layer and cross-entropy in one, without the logits in memory.

Reads top to bottom: the face, the torch implementation (chunks of rows), the Triton kernels, their
autograd wrapper. Letters: N rows, M rows that carry a loss, D width, V width of the vocabulary slice.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reca_kernels.choice import Implementation, chosen
from reca_kernels.inputs import autocast, check_linear, check_reduction, reduced

_CHUNK_BYTES = 16 * 2**20  # of fp32 logits: 16 MiB run as fast as 64 (benchmarks: chunk.csv)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    vocab: tuple[int, int] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
    implementation: Implementation = "auto",
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias` against `targets`, without the logits in memory.

    `hidden` [..., D], `weight` [vocabulary, D], `bias` [vocabulary] or None, `targets` [...] (int64
    or int32). Only the ids `vocab` = (start, stop) take part (None: all); targets are absolute ids
    in start..stop-1, or `ignore_index`: such a row costs nothing. The loss is fp32 (fp64 for fp64
    inputs): "none" gives [...] with 0 in ignored rows, "sum" their sum, "mean" the sum divided by
    the number of rows with a target; with no such row loss and gradients are 0 (where
    `F.cross_entropy` gives nan). Label smoothing is that of `F.cross_entropy` over the slice.
    Gradients reach hidden, weight and bias, once (no second derivative). ValueError on a target
    outside the slice and on shapes, types or devices that do not go together.
    """
    rows, wanted = _check(hidden, weight, targets, bias, vocab, ignore_index, label_smoothing)
    check_reduction(reduction)
    hidden, weight, bias = autocast(hidden, weight, bias)
    start, stop = vocab or (0, weight.shape[0])
    flat = hidden.reshape(-1, hidden.shape[-1])
    which = chosen("linear_cross_entropy", implementation, hidden)
    function = _Triton if which == "triton" else _Torch
    losses = function.apply(
        flat, weight, bias, rows, wanted, (start, stop), label_smoothing, reduction
    )
    return reduced(losses, rows, targets.shape, reduction)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab: tuple[int, int] | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor | None, Tensor]:
    """Rows [M] that carry a loss (None: all) and their targets [M], counted from the slice's start."""
    check_linear("linear_cross_entropy", hidden, weight, bias)
    if targets.shape != hidden.shape[:-1] or targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"linear_cross_entropy: targets must be int64 {list(hidden.shape[:-1])}, one id per row "
            f"of hidden, not {targets.dtype} {list(targets.shape)}"
        )
    start, stop = vocab or (0, weight.shape[0])
    if not 0 <= start < stop <= weight.shape[0]:
        raise ValueError(
            f"linear_cross_entropy: vocab ({start}, {stop}) is no part of 0..{weight.shape[0]}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"linear_cross_entropy: label_smoothing {label_smoothing} is not in 0..1")
    flat = targets.reshape(-1).long()
    rows = (flat != ignore_index).nonzero().squeeze(1)
    wanted = flat[rows]
    outside = (wanted < start) | (wanted >= stop)
    if bool(outside.any()):
        raise ValueError(
            f"linear_cross_entropy: target {int(wanted[outside][0])} is outside {start}..{stop - 1}; "
            f"give absolute ids of the slice, or ignore_index {ignore_index} for rows without a loss"
        )
    return (None if len(rows) == len(flat) else rows), wanted - start


# ---- torch: chunks of rows; the gradient of a scalar loss is made on the way forward -------------
class _Torch(torch.autograd.Function):
    """The lean implementation: 6 N D V operations as plain torch, one chunk of logits alive."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        wanted: Tensor,
        vocab: tuple[int, int],
        smoothing: float,
        reduction: str,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, rows, wanted)
        ctx.rest = (vocab, smoothing)
        ctx.scale = 1 / max(len(wanted), 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        needs = ctx.needs_input_grad[:3] if ctx.scalar else (False,) * 3
        losses, ctx.gradients = _chunked(
            hidden, weight, bias, rows, wanted, vocab, smoothing, None, needs, ctx.scale
        )
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Hand out the gradients that forward made; make them (again) where it could not."""
        gradients, ctx.gradients = ctx.gradients, None
        needs = ctx.needs_input_grad[:3]
        if not ctx.scalar or gradients is None:
            hidden, weight, bias, rows, wanted = ctx.saved_tensors
            by_row = None if ctx.scalar else incoming
            _, gradients = _chunked(
                hidden, weight, bias, rows, wanted, *ctx.rest, by_row, needs, ctx.scale
            )
        if ctx.scalar and float(incoming) != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(incoming)
        return (*gradients, None, None, None, None, None)


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    wanted: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
    by_row: Tensor | None,
    needs: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """Losses [M] and, where `needs` says so, gradients of hidden, weight and bias times `scale`.

    `by_row` [M] weighs the rows' gradients.
    """
    start, stop = vocab
    wide = torch.promote_types(hidden.dtype, torch.float32)
    slice_w = weight[start:stop]
    slice_b = None if bias is None else bias[start:stop]
    losses = torch.empty(len(wanted), dtype=wide, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs[2] else None
    step = max(_CHUNK_BYTES // (4 * (stop - start)), 16)
    for first in range(0, len(wanted), step):
        part = slice(first, min(first + step, len(wanted)))
        chosen_rows = part if rows is None else rows[part]
        x = hidden[chosen_rows]
        logits = torch.nn.functional.linear(x, slice_w, slice_b).to(wide)
        losses[part], residual = _softmax_(logits, wanted[part], smoothing, any(needs))
        if not any(needs):
            continue
        if by_row is not None:
            residual.mul_(by_row[part].unsqueeze(1))
        if d_bias is not None:
            d_bias[start:stop] += residual.sum(0)
        residual = residual.to(hidden.dtype)
        if d_hidden is not None:
            d_hidden[chosen_rows] = (residual @ slice_w).mul_(scale)
        if d_weight is not None:
            _add_product(d_weight[start:stop], residual.T, x)
    return losses, (
        d_hidden,
        None if d_weight is None else d_weight.mul_(scale).to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(scale).to(bias.dtype),
    )


def _softmax_(
    logits: Tensor, wanted: Tensor, smoothing: float, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Losses [m] and the derivative of each by its logits [m, V], which it overwrites."""
    aim = wanted.unsqueeze(1)
    greatest = logits.amax(1, keepdim=True)
    hit = logits.gather(1, aim)
    mean = logits.mean(1, keepdim=True) if smoothing else hit
    mass = logits.sub_(greatest).exp_().sum(1, keepdim=True)
    loss = greatest + mass.log() - (1 - smoothing) * hit - smoothing * mean
    if differentiate:
        logits.div_(mass)
        logits.scatter_add_(1, aim, torch.full_like(hit, smoothing - 1))
        if smoothing:
            logits.sub_(smoothing / logits.shape[1])
    return loss.squeeze(1), logits


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b; sums of low-precision chunks are kept in fp32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
