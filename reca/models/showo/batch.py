"""Inputs of Show-o's losses and sampler: conditions, noise, conversations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.common.batching import count_labels


@dataclass(frozen=True)
class Condition:
    """Framed texts, one per row, and for RecA the `understanding` features of the image to reconstruct."""

    texts: Sequence[Sequence[int]]
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class MaskNoise:
    """Uniform noise of a generation loss: time `t` [B], slot order `u` [B, N], `text_dropout` [B]."""

    t: Tensor
    u: Tensor
    text_dropout: Tensor

    @property
    def masked(self) -> Tensor:
        """The slots to predict, bool [B, N]."""
        return masked_slots(self.t, self.u)

    @property
    def count(self) -> int:
        """Number of masked slots in the batch (text-to-image may add boundary tokens: see `ShowoModel.loss_count`)."""
        return int(self.masked.sum())


@dataclass(frozen=True)
class Conversation:
    """Tokenised conversations with labels on answers, truncated to the length that the layout allows.

    `system` is the prompt in front of an image in the CLIP variant.
    """

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    length: int
    system: Sequence[int] = ()

    @property
    def count(self) -> int:
        """Number of tokens with a loss; the first one counts, too, because the prefix predicts it."""
        return count_labels(self.labels)


# ---- training corruption (showo.md 4.1) --------------------------------------------------------------
def cosine_ratio(t: Tensor) -> Tensor:
    """Fraction of masked slots at time t in [0, 1]: cos(pi/2 t)."""
    return torch.cos(t * math.pi * 0.5)


def masked_slots(t: Tensor, u: Tensor) -> Tensor:
    """The masked slots, bool [B, N], from uniform t [B] and u [B, N]; at least one per row.

    Slot j is masked if argsort(u)[j] < k: the published rule, which compares argsort values, not
    ranks.
    """
    count = (cosine_ratio(t) * u.shape[1]).round().clamp(min=1)  # rounds half to even
    return u.argsort(dim=1, stable=True) < count.unsqueeze(1)
