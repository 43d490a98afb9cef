"""Harmon's sequences: prompts padded right, a picture put in behind three tokens, positions that skip padding.

Everything here is a pure function. Lengths are known beforehand, so sequences are put together by concatenation.
Source: docs/reference/harmon.md b and d1. Letters: B batch, T text, L latents of a picture, V visible ones,
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
"""In ids: the picture that is read stands here."""

IMAGE_AT = 3
"""Where it stands: behind `<|im_start|>`, `user` and a newline."""


@dataclass(frozen=True)
class Prompts:
    """Prompts padded right: `ids` and `mask` (1 = token), int64 [B, T]; `has_image`: a placeholder in each row."""

    ids: Tensor
    mask: Tensor
    has_image: bool


def prompts(rows: Sequence[Sequence[int]], padding: int) -> Prompts:
    """Pad rows of ids; ValueError where only some rows have a picture, or have it in another place."""
    places = {row.index(IMAGE) if IMAGE in row else None for row in rows}
    if len(places) > 1 or not places <= {None, IMAGE_AT}:
        raise ValueError(
            f"a batch needs the picture at token {IMAGE_AT} of every prompt, or in none"
        )
    ids, real = padded(rows, padding)
    return Prompts(ids, real.long(), places == {IMAGE_AT})


def expanded(
    embeddings: Tensor, mask: Tensor, image: Tensor | None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Put embeddings `image` [B, L + S, H] in the placeholder's place of [B, T, H]; also of the mask [B, T].

    `seen` [B] bool hides the picture of single rows, as if it were padding.
    """
    if image is None:
        return embeddings, mask
    shown = mask.new_ones(image.shape[:2])
    if seen is not None:
        shown = shown * seen.to(mask).unsqueeze(1)
    whole = torch.cat([embeddings[:, :IMAGE_AT], image, embeddings[:, IMAGE_AT + 1 :]], dim=1)
    return whole, torch.cat([mask[:, :IMAGE_AT], shown, mask[:, IMAGE_AT + 1 :]], dim=1)


def positions(mask: Tensor) -> Tensor:
    """Rotary positions [B, T] of a key mask: padding takes none."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def shifted_labels(labels: Tensor, image_length: int) -> Tensor:
    """Labels [B, T] with the picture put in, as the targets of hidden states: entry j is what state j predicts.

    [B, T + L + S - 2] with a picture, [B, T - 1] where `image_length` is 0.
    """
    if image_length:
        blank = labels.new_full((len(labels), image_length), IGNORE)
        labels = torch.cat([labels[:, :IMAGE_AT], blank, labels[:, IMAGE_AT + 1 :]], dim=1)
    return labels[:, 1:]


# ---- masks -----------------------------------------------------------------------------------------
def mask_rate(uniform: float, least: float, spread: float = 0.25) -> float:
    """A draw of Normal(1, spread) truncated to [least, 1], from a uniform one (harmon.md d1)."""
    low, high = _normal_cdf((least - 1) / spread), 0.5
    quantile = torch.special.ndtri(torch.tensor(low + uniform * (high - low), dtype=torch.float64))
    return min(1.0, max(least, 1 + spread * quantile.item()))


def masked_count(tokens: int, rate: float) -> int:
    """K: how many of the tokens are masked."""
    return math.ceil(tokens * rate)


def places(orders: Tensor, masked: int) -> tuple[Tensor, Tensor]:
    """Masked [B, K] and visible [B, V] places in raster order: the first `masked` of each order are masked."""
    return orders[:, :masked].sort(dim=1).values, orders[:, masked:].sort(dim=1).values


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
