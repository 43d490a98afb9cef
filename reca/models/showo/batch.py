"""What Show-o's losses and pictures are made from: conditions, draws, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reca.models.showo import sampler as sampling_rules
from reca.models.showo.layout import IGNORE


@dataclass(frozen=True)
class Condition:
    """Framed texts, one per row, and for RecA the `understanding` features of the picture to draw
    again.
    """

    texts: Sequence[Sequence[int]]
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class MaskNoise:
    """Uniform draws of a drawing loss: time `t` [B], slot order `u` [B, N], `text_dropout` [B]."""

    t: Tensor
    u: Tensor
    text_dropout: Tensor

    @property
    def masked(self) -> Tensor:
        """The slots to predict, bool [B, N]."""
        return sampling_rules.masked_slots(self.t, self.u)

    @property
    def count(self) -> int:
        """Masked slots in the batch (text-to-image may add boundary tokens: see
        `ShowoModel.loss_count`).
        """
        return int(self.masked.sum())


@dataclass(frozen=True)
class Conversation:
    """Tokenised conversations with labels on answers, cut to the room that the layout has."""

    texts: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    length: int

    @property
    def count(self) -> int:
        """Tokens that carry a loss; one in the first place counts too, the prefix predicts it."""
        return sum(label != IGNORE for row in self.labels for label in row)
