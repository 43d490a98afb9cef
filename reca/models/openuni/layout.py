"""OpenUni's sequences: prompts padded on either side, images put in, positions that skip padding, queries at the end.

Everything here is a pure function. Source: docs/reference/openuni.md b2. Letters: B batch, T text, N tokens of an
image, Q queries, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from reca.models.common.batching import padded
from reca.models.common.tokenizer import IGNORE


def positions(mask: Tensor) -> Tensor:
    """Rotary positions [B, T] of a key mask: padding takes none, on whichever side it is."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def with_queries(mask: Tensor, queries: int) -> Tensor:
    """The key mask [B, T + Q] of prompts followed by queries, which are never padding."""
    return F.pad(mask.long(), (0, queries), value=1)


def with_images(embeddings: Tensor, ids: Tensor, images: Tensor, image: int) -> Tensor:
    """Put embeddings `images` [B, N, H] in the places of the id `image`, in order; ids [B, T], embeddings [B, T, H]."""
    here = ids == image
    found, needed = int(here.sum()), images.shape[0] * images.shape[1]
    if found != needed:
        raise ValueError(f"the prompts have {found} places for image tokens, the images {needed}")
    return embeddings.masked_scatter(here.unsqueeze(-1), images.to(embeddings))


def trimmed(row: Sequence[int], most: int, header: int) -> Sequence[int]:
    """A prompt cut to `most` tokens from the right, in front of its last `header` tokens."""
    if len(row) <= most:
        return row
    return [*row[: most - header], *row[len(row) - header :]]


def next_labels(labels: Sequence[Sequence[int]]) -> Tensor:
    """Labels of conversations, padded right, as the targets [B, T - 1] of hidden states: entry j is what j predicts."""
    return padded(labels, IGNORE)[0][:, 1:]
