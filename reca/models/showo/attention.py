"""Show-o's attention inside transformers' Phi: SDPA under a dense mask, or block attention.

The choice is made per call: `Showo.hidden` passes a block layout or a dense mask through
transformers' keyword arguments, and transformers finds the function below by its name.
"""

from __future__ import annotations

from typing import Any

from reca_kernels import Implementation, Layout, block_attention
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "reca_block_attention"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    block_layout: Layout | None = None,
    block_implementation: Implementation = "auto",
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of query [B, H, L, E] to key and value [B, K, L, E], as [B, L, H, E].

    ValueError for dropout in block attention, which does not support it.
    """
    if block_layout is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if dropout:
        raise ValueError(
            "block attention has no dropout; set network.llm attention_dropout to 0, as released"
        )
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    out = block_attention(q, k, v, block_layout, scale=scaling, implementation=block_implementation)
    return out.unflatten(0, (query.shape[0], query.shape[2])), None


AttentionInterface.register(NAME, attention)
