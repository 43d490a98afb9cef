"""What goes into BAGEL's losses besides features: conditions, draws, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Condition:
    """Token ids per row (None: no text at all), and for RecA what was seen of the picture to draw again.

    `seen` [B, P, Dvit] are ViT states on `grid` [B, 2], or, in the VAE ablation, moments [B, 2z, h, w] (`grid` None).
    """

    texts: Sequence[Sequence[int] | None]
    seen: Tensor | None = None
    grid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class FlowNoise:
    """Noise of a velocity loss: raw times [B], `gaussian` [B, N, C], `posterior` [B, z, h, w], `text_dropout` [B].

    `condition` [B, z, h', w'] is the posterior noise of a VAE condition (ablation).
    """

    raw: Tensor
    gaussian: Tensor
    posterior: Tensor
    text_dropout: Tensor
    condition: Tensor | None = None

    @property
    def count(self) -> int:
        """Latent tokens that carry the loss."""
        return self.gaussian.shape[0] * self.gaussian.shape[1]


@dataclass(frozen=True)
class Conversation:
    """Token ids [B, T] of alternating question and answer texts (BOS ... EOS each), labels and lengths."""

    ids: Tensor
    labels: Tensor
    lengths: Tensor

    @property
    def count(self) -> int:
        """Tokens that carry a loss."""
        return int((self.labels != IGNORE).sum())


def padded(
    rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad: int
) -> Conversation:
    """Rows of token ids and of labels as one rectangle, ids filled up with `pad`."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())

    def block(lists: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in lists])

    return Conversation(block(rows, pad), block(labels, IGNORE), lengths)
