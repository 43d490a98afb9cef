"""Attention of the families' language models: rotary positions, a cache of keys and values, SDPA with shared heads.

Operations and their order are those of transformers (tests/models/test_transformers.py). Letters: B batch, L tokens,
P tokens with keys (those of a cache first), H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, [..., E], of tokens' positions."""

_WIDEST = 256  # head width up to which torch's fast kernels share key/value heads themselves


def rotary(positions: Tensor, width: int, theta: float) -> Rotary:
    """Cosines and sines [..., width] of positions [...], in fp32: pair i turns by position * theta^(-2 i / width).

    Computed in every pass: as a buffer, the frequencies would stay on the meta device when weights are assigned.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions.unsqueeze(-1).float() * (1.0 / theta**steps)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn x [..., E] by cosines and sines that broadcast to it; value i pairs with value i + E / 2."""
    (cos, sin), half = rotary, x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class KeyValueCache:
    """Keys and values of earlier tokens, [B, K, P, E] each, layer by layer."""

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def length(self) -> int:
        """P: tokens that are kept."""
        return self._layers[0][0].shape[2] if self._layers else 0

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values [B, K, L, E] of a layer's new tokens; gives those of all its tokens."""
        if layer == len(self._layers):
            self._layers.append((keys.contiguous(), values.contiguous()))
        else:
            old = self._layers[layer]
            both = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
            self._layers[layer] = both
        return self._layers[layer]

    def drop(self, tokens: int) -> None:
        """Forget the last tokens."""
        end = self.length - tokens
        self._layers = [(keys[:, :, :end], values[:, :, :end]) for keys, values in self._layers]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be named several times."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Attention of q [B, H, L, E] to k and v [B, K, P, E], as [B, L, H, E].

    `mask` [B, 1, L, P] is boolean (true: seen) or added to the scores. Without one every key is seen; with `causal`,
    which needs L = P or L = 1, those of earlier tokens.
    """
    batch, heads, length, width = q.shape
    groups = heads // k.shape[1]
    by_kernel = groups > 1 and mask is None and width <= _WIDEST
    if groups > 1 and not by_kernel and length == 1:
        q = q.reshape(batch, -1, groups, width)  # queries of one token share keys without a copy
    elif groups > 1 and not by_kernel:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        scale=width**-0.5,
        is_causal=causal and mask is None and length > 1,
        enable_gqa=by_kernel,
    )
    return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous()
