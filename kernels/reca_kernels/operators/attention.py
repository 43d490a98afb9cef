"""Block attention with its gradients: `forward` and `gradients` run the implementation that is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reca_kernels import attention, library
from reca_kernels.layout import Layout, layout_of
from reca_kernels.operators.operation import Operation


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sample: Tensor,
    tag: Tensor,
    positions: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Outputs [Q, H, E] under the layout of `sample`, `tag` [T] and `positions` [Q], and log-sum-exps [H, Q]."""
    layout = layout_of(sample, tag, positions)
    if implementation == "torch":
        out = library.by_intervals(q, k, v, layout, scale)
        return out.contiguous(), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return attention.tiled(q, k, v, layout, scale)


def _shapes(q, k, v, sample, tag, positions, scale, implementation):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def gradients(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sample: Tensor,
    tag: Tensor,
    positions: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [Q, H, E], k and v [T, K, E]."""
    layout = layout_of(sample, tag, positions)
    if implementation == "torch":
        return library.interval_gradients(q, k, v, d_out, layout, scale)
    return attention.tiled_gradients(d_out, q, k, v, out, lse, layout, scale)


def _gradient_shapes(d_out, q, k, v, out, lse, sample, tag, positions, scale, implementation):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.implementation = inputs
    q, k, v, *tokens = tensors
    ctx.save_for_backward(q, k, v, *outputs, *tokens)
    ctx.layout = layout_of(*tokens, known=True)  # alive until backward, with the lists it keeps


def _backward(ctx: Any, again: Callable[..., Any], incoming: Tensor) -> tuple[Any, ...]:
    return (*again(incoming, *ctx.saved_tensors, ctx.scale, ctx.implementation), *[None] * 5)


block_attention = Operation(
    "block_attention", forward, gradients, _shapes, _gradient_shapes, _save, _backward
)


def _unsavable(tensor: Tensor) -> bool:
    """Whether autograd refuses to keep the tensor for a backward pass: it was made in inference mode."""
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def attended(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, implementation: str
) -> Tensor:
    """Outputs [Q, H, E] of the operation for q [Q, H, E], k and v [T, K, E]."""
    if not torch.compiler.is_compiling() and _unsavable(layout.sample):
        layout = layout.cached("normal", layout.cloned)
    tokens = (layout.sample, layout.tag, layout.query_positions)
    return block_attention(q, k, v, *tokens, scale, implementation)[0]
