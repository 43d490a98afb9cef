"""Attention across both experts: in packs, and in blocks over cached keys and values.

Letters: B rows, L longest row, P cached keys, U und and G gen tokens of a block, H heads, K key/value
heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from reca_kernels import Implementation, block_attention
from torch import Tensor
from torch.nn import functional as F

from reca.models.bagel.layout import Packed
from reca.models.bagel.network import Heads
from reca.models.common.batching import moved

STORES_SCORES = frozenset({"cuda"})
"""Types of devices without a fast kernel for a mask and keys that heads share: the plain one stores all scores."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of q [B, Q, H, E] over k, v [B, L, K, E]; `mask` [B, 1, Q, L] or [Q, L], True = may attend."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if k.dtype != q.dtype:  # a bfloat16 cache under float32 queries
        k, v = k.to(q.dtype), v.to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.device.type in STORES_SCORES:
        share, grouped = q.shape[1] // k.shape[1], False
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)


class PackedAttention:
    """Attention over a pack under the rule of bagel.md 2; no mask is stored on a GPU."""

    def __init__(
        self, packed: Packed, device: torch.device, implementation: Implementation = "auto"
    ) -> None:
        at = torch.cat([packed.text_at, packed.vit_at, packed.latent_at])
        self.und = len(at) - len(packed.latent_at)
        self.at, self.order = moved(at, device), moved(at.argsort(), device)
        self.layout, self.implementation = packed.layout().to(device), implementation

    def __call__(self, read: Heads, drawn: Heads) -> tuple[Tensor, Tensor]:
        """Outputs [U, H, E] and [G, H, E] of the pack's tokens."""
        q, k, v = (
            torch.cat(parts)[self.order]
            for parts in ((read.q, drawn.q), (read.k, drawn.k), (read.v, drawn.v))
        )
        out = block_attention(q, k, v, self.layout, implementation=self.implementation)[self.at]
        return out[: self.und], out[self.und :]


@dataclass
class BlockAttention:
    """Attention of one block over itself and the cached keys and values of earlier blocks.

    `past`: keys and values [B, P, K, E] of this layer. `mask`: [B, 1, U + G, P + U + G] or None for full attention.
    Afterwards `kept` holds this block's keys and values, und before gen.
    """

    past: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, read: Heads, drawn: Heads) -> tuple[Tensor, Tensor]:
        """Outputs [B, U, H, E] and [B, G, H, E]."""
        und = read.q.shape[1]
        q = torch.cat([read.q, drawn.q], dim=1) if drawn.q.shape[1] else read.q
        k, v = self.kept = _keys_and_values(read, drawn)
        if self.past is not None:
            k, v = torch.cat([self.past[0], k], dim=1), torch.cat([self.past[1], v], dim=1)
        out = attend(q, k, v, self.mask)
        return out[:, :und], out[:, und:]

    def keep(self, read: Heads, drawn: Heads) -> None:
        """Hold this block's keys and values without attending."""
        self.kept = _keys_and_values(read, drawn)


def _keys_and_values(read: Heads, drawn: Heads) -> tuple[Tensor, Tensor]:
    """Keys and values [B, U + G, K, E] of both experts' tokens, und before gen."""
    if not drawn.k.shape[1]:
        return read.k, read.v
    return torch.cat([read.k, drawn.k], dim=1), torch.cat([read.v, drawn.v], dim=1)
