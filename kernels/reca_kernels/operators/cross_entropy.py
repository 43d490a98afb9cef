"""Linear cross-entropy with its gradients: `forward` and `gradients` run the implementation that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reca_kernels import cross_entropy
from reca_kernels.inputs import dense_rows
from reca_kernels.operators.operation import (
    NO_GRADIENTS,
    Gradients,
    Kept,
    Operation,
    average,
    fake_count,
    fake_gradients,
    given,
    row_losses,
    rows_of,
    wanted,
)
from reca_kernels.product import scaled_


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int | None,
    start: int,
    stop: int,
    smoothing: float,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [] or losses [N] of hidden [N, D] against targets [N]; log-sum-exp [N], number of rows, gradients.

    A scalar loss gives the gradients of hidden, weight and bias that `needs` names at once, else they are empty.
    Without an `ignore_index` the values of the targets are not checked; else this is the one wait for the device.
    """
    rows, aims, count = _targets(targets, ignore_index, start, stop)
    scale, scalar, vocab = average(len(aims), reduction), reduction != "none", (start, stop)
    now = list(needs) if scalar else [False] * 3
    lse = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    gradients: Gradients | None
    if implementation == "torch":
        losses, gradients = cross_entropy.chunked(
            hidden, weight, bias, rows, aims, vocab, smoothing, None, now, scale
        )
    else:
        hidden, weight = dense_rows(hidden), dense_rows(weight)
        bias = None if bias is None else bias.contiguous()
        arguments = (hidden, weight, bias, rows, aims, vocab, smoothing)
        if any(now):
            losses, gradients = cross_entropy.fused(*arguments, now, scale)
        else:
            lse[: len(aims)], losses = cross_entropy.log_sums(*arguments)
            gradients = NO_GRADIENTS
    loss = losses.sum() * scale if scalar else row_losses(losses, rows, len(targets))
    hidden_gradient, weight_gradient, bias_gradient = given(gradients or NO_GRADIENTS, hidden)
    return loss, lse, count, hidden_gradient, weight_gradient, bias_gradient


def _targets(
    targets: Tensor, ignore_index: int | None, start: int, stop: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Rows [M] with a loss (None: all), their targets [M] from `start` on, and M in main memory (empty: all)."""
    if ignore_index is None:
        return None, targets - start, targets.new_empty(0)
    valid = targets != ignore_index
    outside = valid & ((targets < start) | (targets >= stop))
    count, wrong = torch.stack([valid.sum(), outside.sum()]).tolist()
    if wrong:
        raise ValueError(
            f"linear_cross_entropy: target {int(targets[outside][0])} is outside {start}..{stop - 1}; "
            f"give absolute ids of the slice, or ignore_index {ignore_index} for rows without a loss"
        )
    rows = rows_of(valid, count)
    aims = (targets if rows is None else targets[rows]) - start
    return rows, aims, torch.tensor(count, device="cpu")


def _shapes(
    hidden, weight, bias, targets, ignore_index, start, stop, smoothing, reduction, implementation,
    needs,
):  # fmt: skip
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty(targets.shape if reduction == "none" else (), dtype=wide)
    now = list(needs) if reduction != "none" else [False] * 3
    return (
        loss,
        hidden.new_empty(targets.shape, dtype=torch.float32),
        fake_count(targets, ignore_index is not None),
        *fake_gradients(hidden, weight, now),
    )


def gradients(
    incoming: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    count: Tensor,
    ignore_index: int | None,
    start: int,
    stop: int,
    smoothing: float,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [N, D], weight and bias for `incoming`, [] or [N]; empty where `needs` is false."""
    rows = None if ignore_index is None else rows_of(targets != ignore_index, int(count))
    aims, vocab = (targets if rows is None else targets[rows]) - start, (start, stop)
    scale, scalar = average(len(aims), reduction), reduction != "none"
    by_row = None if scalar else (incoming if rows is None else incoming[rows])
    if implementation == "torch":
        _, gradients = cross_entropy.chunked(
            hidden, weight, bias, rows, aims, vocab, smoothing, by_row, needs, scale
        )
        gradients = gradients or NO_GRADIENTS
        if scalar:
            gradients = tuple(None if one is None else one.mul_(incoming) for one in gradients)
    else:
        hidden, weight = dense_rows(hidden), dense_rows(weight)
        bias = None if bias is None else bias.contiguous()
        factor = torch.full((1,), scale, dtype=torch.float32, device=incoming.device)
        if scalar:
            factor = factor * incoming.float()
            lse, _ = cross_entropy.log_sums(hidden, weight, bias, rows, aims, vocab, smoothing)
        by_row = None if by_row is None else by_row.float().contiguous()
        gradients = cross_entropy.slabs(
            hidden,
            weight,
            bias,
            rows,
            aims,
            lse[: len(aims)],
            vocab,
            smoothing,
            by_row,
            factor,
            needs,
        )
    hidden_gradient, weight_gradient, bias_gradient = given(gradients, hidden)
    return hidden_gradient, weight_gradient, bias_gradient


def _gradient_shapes(
    incoming, hidden, weight, bias, targets, lse, count, ignore_index, start, stop, smoothing,
    reduction, implementation, needs,
):  # fmt: skip
    return tuple(fake_gradients(hidden, weight, needs))


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, *ctx.options, ctx.needs = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, outputs[1], outputs[2])
    ctx.kept = Kept(outputs[3:], ctx.needs) if ctx.options[4] != "none" else None


def _backward(ctx: Any, again: Callable[..., Any], incoming: Tensor) -> tuple[Any, ...]:
    # a kernel of ours where no graph is traced
    ours = ctx.options[5] == "triton" and again is gradients
    scale_ = scaled_ if ours else Tensor.mul_
    found = ctx.kept.taken(incoming, scale_) if ctx.kept else None
    if found is None:
        made = again(incoming, *ctx.saved_tensors, *ctx.options, list(ctx.needs))
        found = wanted(made, ctx.needs)
    return (*found, *[None] * 8)


linear_cross_entropy = Operation(
    "linear_cross_entropy", forward, gradients, _shapes, _gradient_shapes, _save, _backward
)
