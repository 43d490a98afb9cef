"""What goes into OpenUni's losses besides features: conditions, noise, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reca.models.common.batching import count_labels


@dataclass(frozen=True)
class Condition:
    """Prompts as ids, one per row; for RecA also what was read of the images to generate again.

    `understanding` [B, N, H] are understanding embeddings, `pixels` [B, 3, S, S] the ViT's input where it is read anew
    (stochastic depth); at most one of them. `dropped` is what a caption becomes when it is dropped, `negative` what
    guidance pushes a reconstruction away from: the same image with another prompt.
    """

    texts: Sequence[Sequence[int]]
    dropped: Sequence[int] = ()
    understanding: Tensor | None = None
    pixels: Tensor | None = None
    negative: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_image(self) -> bool:
        """Whether an image is part of the condition."""
        return self.understanding is not None or self.pixels is not None


@dataclass(frozen=True)
class FlowNoise:
    """Noise of a velocity loss: `uniform` [B] chooses the time, `gaussian` [B, C, h, w], `text_dropout` [B] uniform.

    `depth` [layers, 2, B] uniform: which residual branches of the ViT a row keeps (stochastic depth).
    """

    uniform: Tensor
    gaussian: Tensor
    text_dropout: Tensor
    depth: Tensor | None = None

    @property
    def count(self) -> int:
        """Latent tokens that carry the loss."""
        batch, _, height, width = self.gaussian.shape
        return batch * height * width


@dataclass(frozen=True)
class Conversation:
    """Token ids of conversations, one list per row, and labels on answers."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def count(self) -> int:
        """Tokens that carry a loss."""
        return count_labels(self.labels)
