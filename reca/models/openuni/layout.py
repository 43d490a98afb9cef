"""OpenUni's sequences: prompts padded on either side, images put in, positions that skip padding, queries at the end.

Everything here is a pure function. Source: docs/reference/openuni.md b2. Letters: B batch, T text, N tokens of an
image, Q queries, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.common.batching import moved, padded
from reca.models.common.tokenizer import IGNORE


def positions(mask: Tensor) -> Tensor:
    """Rotary positions [B, T] of a key mask: padding takes none, on whichever side it is."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def with_queries(mask: Tensor, queries: int) -> Tensor:
    """The key mask [B, T + Q] of prompts followed by queries, which are never padding."""
    return F.pad(mask.long(), (0, queries), value=1)


def with_images(embeddings: Tensor, ids: Tensor, images: Tensor, image: int) -> Tensor:
    """Put embeddings `images` [B, N, H] in the places of the id `image`, in order; ids [B, T], embeddings [B, T, H].

    The places are counted where the ids are: on the host in training, which then does not wait for the device.
    """
    here = ids == image
    found, needed = int(here.sum()), images.shape[0] * images.shape[1]
    if found != needed:
        raise ValueError(f"the prompts have {found} places for image tokens, the images {needed}")
    device, dtype = embeddings.device, embeddings.dtype
    return embeddings.masked_scatter(
        moved(here.unsqueeze(-1), device), moved(images, device, dtype)
    )


def attends(mask: Tensor, length: int) -> Tensor | None:
    """Which of L keys the last `length` tokens see, bool [B, 1, length, L]: earlier ones that the mask [B, L] keeps.

    None where causality alone decides. A mask on the host is inspected there.
    """
    keys = torch.arange(mask.shape[1], device=mask.device)
    if length in (1, len(keys)) and bool(mask.all()):
        return None
    return (keys <= keys[-length:, None]) & mask.bool()[:, None, None, :]


def trimmed(row: Sequence[int], most: int, header: int) -> Sequence[int]:
    """A prompt cut to `most` tokens from the right, in front of its last `header` tokens."""
    if len(row) <= most:
        return row
    return [*row[: most - header], *row[len(row) - header :]]


def next_labels(labels: Sequence[Sequence[int]]) -> Tensor:
    """Labels of conversations, padded right, as the targets [B, T - 1] of hidden states: entry j is what j predicts."""
    return padded(labels, IGNORE)[0][:, 1:]
