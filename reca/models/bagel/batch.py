"""Inputs of BAGEL's losses besides features: conditions, noise, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reca.models.common.tokenizer import IGNORE


@dataclass(frozen=True)
class Condition:
    """Token ids per row (None: no text), and for RecA the features of the image to reconstruct.

    `seen` [B, P, Dvit] are ViT states on `grid` [B, 2], or, in the VAE ablation, moments [B, 2z, h, w] (`grid` None).
    """

    texts: Sequence[Sequence[int] | None]
    seen: Tensor | None = None
    grid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class _VelocityNoise:
    """Noise of a velocity loss: raw times [B] and `gaussian` [B, N, C]."""

    raw: Tensor
    gaussian: Tensor

    @property
    def count(self) -> int:
        """Number of latent tokens with a loss."""
        return self.gaussian.shape[0] * self.gaussian.shape[1]


@dataclass(frozen=True)
class FlowNoise(_VelocityNoise):
    """Flow noise with the `posterior` noise [B, z, h, w] of the target and uniform numbers for `text_dropout` [B].

    `condition` [B, z, h', w'] is the posterior noise of a VAE condition (ablation).
    """

    posterior: Tensor
    text_dropout: Tensor
    condition: Tensor | None = None


@dataclass(frozen=True)
class EditNoise(_VelocityNoise):
    """Flow noise of an edit, with the posterior noise of target and source, [B, z, h, w] each.

    `dropout` [B, 3] are uniform numbers that decide whether a row drops its clean latents, ViT features and text.
    """

    target: Tensor
    source: Tensor
    dropout: Tensor


@dataclass(frozen=True)
class Conversation:
    """Token ids [B, T] of alternating question and answer texts (BOS ... EOS each), labels and lengths."""

    ids: Tensor
    labels: Tensor
    lengths: Tensor

    @property
    def count(self) -> int:
        """Number of tokens with a loss."""
        return int((self.labels != IGNORE).sum())
