"""Attention over packed samples whose mask is told per token (`Layout`), never stored densely on a GPU.

Reads top to bottom: the face, the torch implementation (SDPA per run of rows), the Triton kernels,
their autograd wrapper. Letters: T tokens, Q queries, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reca_kernels.choice import Implementation, chosen
from reca_kernels.layout import Layout
from reca_kernels.runs import Group, runs


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Softmax attention [Q, H, E] of packed queries to the keys that `layout` lets each of them see.

    `q` [Q, H, E] (Q = T unless the layout says who asks), `k` and `v` [T, K, E] with H a multiple of
    K (grouped queries: head h reads key head h // (H / K)). `scale` defaults to 1 / sqrt(E). A query
    that may see nothing gives 0, and gets and causes no gradient. Gradients reach q, k and v, once.
    ValueError on shapes, types or devices that do not go together.
    """
    _check(q, k, v, layout)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    obstacle = None if q.shape[-1] <= 256 else f"head width {q.shape[-1]} is above 256"
    if chosen("block_attention", implementation, q, obstacle) == "triton":
        return _Triton.apply(q, k, v, layout, scale)
    return _torch(q, k, v, layout, scale)


def _check(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
    asked = layout.tokens if layout.queries is None else len(layout.queries)
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"block_attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} must be "
            "[Q, H, E], [T, K, E], [T, K, E]"
        )
    if (q.shape[0], k.shape[0]) != (asked, layout.tokens):
        raise ValueError(
            f"block_attention: the layout has {asked} queries and {layout.tokens} keys, "
            f"but q has {q.shape[0]} and k {k.shape[0]} tokens"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"block_attention: {q.shape[1]} heads are no multiple of {k.shape[1]} key heads"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not q.dtype.is_floating_point:
        raise ValueError(
            f"block_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; give one floating type"
        )
    if len({q.device, k.device, v.device, layout.sample.device}) > 1:
        raise ValueError(
            f"block_attention: q, k, v are on {q.device}, {k.device}, {v.device}, the layout on "
            f"{layout.sample.device}; move the layout with layout.to(...)"
        )


# ---- torch: one SDPA per run of rows that see the same stretch of keys (runs.py) -----------------
def _torch(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    found = [_group(q, k, v, group, scale) for group in runs(layout, q.dtype)]
    return torch.cat(found) if found else q * 0


def _group(q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float) -> Tensor:
    """Outputs [batch * rows, H, E] of samples that are alike in size."""
    batch, rows, columns = group.batch, group.rows, group.columns
    asked = q[group.first_query : group.first_query + batch * rows].unflatten(0, (batch, rows))
    keys, values = (
        t[group.first_key : group.first_key + batch * columns].unflatten(0, (batch, columns))
        for t in (k, v)
    )
    asked, keys, values = (t.transpose(1, 2) for t in (asked, keys, values))
    parts = [
        F.scaled_dot_product_attention(
            asked[:, :, run.rows],
            keys[:, :, run.columns],
            values[:, :, run.columns],
            attn_mask=run.mask,
            is_causal=run.causal,
            scale=scale,
        )
        for run in group.runs
    ]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return whole.transpose(1, 2).flatten(0, 1)
