"""Harmon's sequences: right-padded prompts, an image inserted after three tokens, positions that skip padding.

Everything here is a pure function. Lengths are known beforehand, so sequences are built by concatenation.
Source: docs/reference/harmon.md b and d1. Letters: B batch, T text, L latents of an image, V visible ones,
S buffers, H width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.common.batching import padded
from reca.models.common.tokenizer import IGNORE

IMAGE = -200
"""In ids, marks the position of the input image."""

IMAGE_AT = 3
"""The index of the marker: after `<|im_start|>`, `user` and a newline."""


@dataclass(frozen=True)
class Prompts:
    """Right-padded prompts: `ids` and `mask` (1 = token), int64 [B, T]; `has_image`: each row has a placeholder."""

    ids: Tensor
    mask: Tensor
    has_image: bool


def prompts(rows: Sequence[Sequence[int]], padding: int) -> Prompts:
    """Pad rows of ids; ValueError if only some rows have an image, or have it at another position."""
    places = {row.index(IMAGE) if IMAGE in row else None for row in rows}
    if len(places) > 1 or not places <= {None, IMAGE_AT}:
        raise ValueError(f"a batch needs the image at token {IMAGE_AT} of every prompt, or in none")
    ids, real = padded(rows, padding)
    return Prompts(ids, real.long(), places == {IMAGE_AT})


def expanded(
    embeddings: Tensor, mask: Tensor, image: Tensor | None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace the placeholder in [B, T, H] and in the mask [B, T] with embeddings `image` [B, L + S, H].

    `seen` [B] bool hides the image in single rows, as if it were padding.
    """
    if image is None:
        return embeddings, mask
    shown = mask.new_ones(image.shape[:2])
    if seen is not None:
        shown = shown * seen.to(mask).unsqueeze(1)
    sequence = torch.cat([embeddings[:, :IMAGE_AT], image, embeddings[:, IMAGE_AT + 1 :]], dim=1)
    return sequence, torch.cat([mask[:, :IMAGE_AT], shown, mask[:, IMAGE_AT + 1 :]], dim=1)


def positions(mask: Tensor) -> Tensor:
    """Rotary positions [B, T] for a key mask: padding is not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def shifted_labels(labels: Tensor, image_length: int) -> Tensor:
    """Labels [B, T] with the image inserted, as targets of hidden states: entry j is what state j predicts.

    [B, T + L + S - 2] with an image, [B, T - 1] if `image_length` is 0.
    """
    if image_length:
        blank = labels.new_full((len(labels), image_length), IGNORE)
        labels = torch.cat([labels[:, :IMAGE_AT], blank, labels[:, IMAGE_AT + 1 :]], dim=1)
    return labels[:, 1:]


# ---- masks -----------------------------------------------------------------------------------------
def mask_rate(uniform: float, least: float, spread: float) -> float:
    """A sample of Normal(1, spread) truncated to [least, 1], from a uniform one (harmon.md d1)."""
    low, high = _normal_cdf((least - 1) / spread), 0.5
    quantile = torch.special.ndtri(torch.tensor(low + uniform * (high - low), dtype=torch.float64))
    return min(1.0, max(least, 1 + spread * quantile.item()))


def masked_count(tokens: int, rate: float) -> int:
    """The number of masked tokens, K."""
    return math.ceil(tokens * rate)


def places(orders: Tensor, masked: int) -> tuple[Tensor, Tensor]:
    """Masked [B, K] and visible [B, V] positions in raster order: the first `masked` of each order are masked."""
    return orders[:, :masked].sort(dim=1).values, orders[:, masked:].sort(dim=1).values


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
