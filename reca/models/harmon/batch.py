"""What Harmon's losses and pictures are made from: conditions, draws, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from reca.models.harmon.layout import IGNORE

if TYPE_CHECKING:
    from reca.models.harmon.network import Dropout


@dataclass(frozen=True)
class Condition:
    """Prompts as ids, one per row; for RecA also the pictures to draw again.

    `latents` [B, m, n, C] are read anew by the trained encoder; `understanding` [B, L + S, H] was read once and is
    frozen. `dropped` is what a prompt becomes when its text is dropped.
    """

    texts: Sequence[Sequence[int]]
    dropped: Sequence[int] = ()
    latents: Tensor | None = None
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_image(self) -> bool:
        """Whether a picture is part of the condition."""
        return self.latents is not None or self.understanding is not None


@dataclass(frozen=True)
class DiffusionNoise:
    """Noise of a diffusion loss: token `orders` [B, L] of which the first `masked` are hidden, `t` and `gaussian`
    [repeats * B * L, ...] in repeat-major order, `text_dropout` [B], and the seed of MAR's dropout.
    """

    orders: Tensor
    masked: int
    t: Tensor
    gaussian: Tensor
    text_dropout: Tensor
    dropout: Dropout | None = None

    @property
    def count(self) -> int:
        """Rows that carry a loss: masked tokens times repeats."""
        batch, tokens = self.orders.shape
        return batch * self.masked * (len(self.t) // (batch * tokens))


@dataclass(frozen=True)
class Conversation:
    """Tokenised conversations with labels on answers, and where the reader's dropout draws from."""

    texts: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    dropout: Dropout | None = None

    @property
    def count(self) -> int:
        """Tokens that carry a loss."""
        return sum(label != IGNORE for row in self.labels for label in row)
