"""What Janus-Pro's losses and images are made from: conditions, dropout noise, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reca.models.common.batching import count_labels


@dataclass(frozen=True)
class Condition:
    """Prompts as ids from bos to begin-of-image, one per row; for RecA also `understanding` [B, P, W] of images.

    `pad` fills a prompt whose condition is dropped.
    """

    texts: Sequence[Sequence[int]]
    pad: int
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class DropoutNoise:
    """The one random number per row of a generation loss, uniform [B], and the codes N of an image."""

    condition_dropout: Tensor
    codes: int

    @property
    def count(self) -> int:
        """Codes in the batch: each carries a loss."""
        return len(self.condition_dropout) * self.codes


@dataclass(frozen=True)
class Conversation:
    """Tokenised conversations with labels on answers."""

    texts: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def count(self) -> int:
        """Tokens that carry a loss."""
        return count_labels(self.labels)
