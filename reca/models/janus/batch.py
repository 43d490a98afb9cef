"""Inputs of Janus-Pro's losses and sampler: conditions, dropout noise, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reca.models.common.batching import count_labels


@dataclass(frozen=True)
class Condition:
    """Prompts as ids from BOS to begin-of-image, one per row; for RecA also SigLIP features `understanding` [B, P, W].

    `pad` is the id that replaces the tokens of a dropped condition.
    """

    texts: Sequence[Sequence[int]]
    pad: int
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class DropoutNoise:
    """One uniform number per row [B], which decides whether its condition is dropped; `codes` per image."""

    condition_dropout: Tensor
    codes: int

    @property
    def count(self) -> int:
        """Number of codes in the batch, all of which have a loss."""
        return len(self.condition_dropout) * self.codes


@dataclass(frozen=True)
class Conversation:
    """Token ids of conversations, one list per row, and labels on answers."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def count(self) -> int:
        """Number of tokens with a loss."""
        return count_labels(self.labels)
