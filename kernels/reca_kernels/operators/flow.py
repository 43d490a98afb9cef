"""Flow-matching loss with its gradients: `forward` and `gradients` run the implementation that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reca_kernels import flow
from reca_kernels.inputs import dense_rows
from reca_kernels.operators.operation import (
    NO_GRADIENTS,
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


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [] or losses [N] of hidden [N, D]; kept derivatives [N, C], number of rows, gradients.

    Triton keeps the derivatives by the velocities if any gradient is needed; torch gives the gradients of hidden,
    weight and bias that `needs` names at once for a scalar loss. What is not given is empty. A mask is the one wait.
    """
    count = hidden.new_empty(0, dtype=torch.int64)
    rows = None
    if mask is not None:
        number = int(mask.sum())
        rows, count = rows_of(mask, number), torch.tensor(number, device="cpu")
    scalar = reduction != "none"
    scale = average(len(hidden) if mask is None else int(count), reduction)
    kept, gradients = hidden.new_empty(0, len(weight)), NO_GRADIENTS
    if implementation == "torch":
        now = list(needs) if scalar else [False] * 3
        losses, gradients = flow.chunked(hidden, weight, bias, clean, noise, rows, None, now, scale)
    else:
        hidden, weight, clean, noise = (dense_rows(t) for t in (hidden, weight, clean, noise))
        bias = None if bias is None else bias.contiguous()
        losses, kept = flow.tiled(hidden, weight, bias, clean, noise, rows, any(needs))
    loss = losses.sum() * scale if scalar else row_losses(losses, rows, len(hidden))
    hidden_gradient, weight_gradient, bias_gradient = given(gradients, hidden)
    return loss, kept, count, hidden_gradient, weight_gradient, bias_gradient


def _shapes(hidden, weight, bias, clean, noise, mask, reduction, implementation, needs):
    scalar = reduction != "none"
    wide = torch.promote_types(hidden.dtype, torch.float32)
    keep = implementation != "torch" and any(needs)
    now = list(needs) if scalar and implementation == "torch" else [False] * 3
    return (
        hidden.new_empty(() if scalar else hidden.shape[:1], dtype=wide),
        hidden.new_empty(hidden.shape[0] if keep else 0, weight.shape[0]),
        fake_count(hidden, mask is not None),
        *fake_gradients(hidden, weight, now),
    )


def gradients(
    incoming: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    kept: Tensor,
    count: Tensor,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [N, D], weight [C, D] and bias [C] for `incoming`, [] or [N]."""
    rows = None if mask is None else rows_of(mask, int(count))
    scalar = reduction != "none"
    scale = average(len(hidden) if mask is None else int(count), reduction)
    if implementation == "torch":
        by_row = None if scalar else (incoming if rows is None else incoming[rows])
        _, gradients = flow.chunked(hidden, weight, bias, clean, noise, rows, by_row, needs, scale)
        if scalar:
            gradients = tuple(None if one is None else one.mul_(incoming) for one in gradients)
    else:
        kept = kept * (incoming if scalar else incoming.unsqueeze(1))
        gradients = flow.products(kept.to(hidden.dtype), hidden, weight, rows, needs, scale)
    hidden_gradient, weight_gradient, bias_gradient = given(gradients, hidden)
    return hidden_gradient, weight_gradient, bias_gradient


def _gradient_shapes(
    incoming, hidden, weight, bias, clean, noise, mask, kept, count, reduction, implementation,
    needs,
):  # fmt: skip
    return tuple(fake_gradients(hidden, weight, needs))


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reduction, ctx.implementation, ctx.needs = inputs
    ctx.save_for_backward(*tensors, outputs[1], outputs[2])
    made = ctx.implementation == "torch" and ctx.reduction != "none"
    ctx.kept = Kept(outputs[3:], ctx.needs) if made else None


def _backward(ctx: Any, again: Callable[..., Any], incoming: Tensor) -> tuple[Any, ...]:
    found = ctx.kept.taken(incoming) if ctx.kept else None
    if found is None:
        options = (ctx.reduction, ctx.implementation, list(ctx.needs))
        found = wanted(again(incoming, *ctx.saved_tensors, *options), ctx.needs)
    return (*found, *[None] * 6)


flow_matching_loss = Operation(
    "flow_matching_loss", forward, gradients, _shapes, _gradient_shapes, _save, _backward
)
