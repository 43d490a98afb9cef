"""Attention among Show-o's tokens: SDPA under a dense mask, or block attention of a layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reca_kernels import Implementation, Layout, block_attention
from torch import Tensor

from reca.models.common.attention import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries [B, H, L, E] to keys and values [B, K, P, E], as [B, L, H, E]."""


def dense(mask: Tensor) -> Attention:
    """Attention under an additive mask [B, 1, L, P]."""
    return partial(attend, mask=mask)


def blockwise(layout: Layout, implementation: Implementation = "auto") -> Attention:
    """Attention of whole sequences (P = L) under a block layout, by the named implementation."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        scale = query.shape[-1] ** -0.5
        out = block_attention(q, k, v, layout, scale=scale, implementation=implementation)
        return out.unflatten(0, (query.shape[0], query.shape[2]))

    return attention
