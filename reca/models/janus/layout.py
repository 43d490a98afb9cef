"""Janus-Pro's sequences as ids, in which marks take the places of image embeddings and codes.

Everything here is a pure function of token ids and runs on the CPU, so no length is read back from a device. Attention
is causal: in training, padding comes last and needs no mask. Source: docs/reference/janus.md b and d. Letters: B batch,
L sequence, P embeddings of an image that is read, N codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.common.batching import padded
from reca.models.common.tokenizer import IGNORE

IMAGE = -1
"""In ids: an understanding embedding takes this place; in rows, one mark for all of an image."""

CODE = -2
"""In ids: the embedding of a code of the generated image takes this place."""

_FILL = 0  # id of padding that nothing attends to


@dataclass(frozen=True)
class Sequences:
    """Training sequences: `ids` [B, L] with marks, and `states` [B, N]: which ones predict the codes."""

    ids: Tensor
    states: Tensor


@dataclass(frozen=True)
class Prompts:
    """Prompts for sampling, padded left: `ids` [B, L] with marks; `real` [B, L] bool is false for padding."""

    ids: Tensor
    real: Tensor


def expanded(row: Sequence[int], image_length: int, fill: int = IMAGE) -> list[int]:
    """A row in which `image_length` times `fill` takes the place of the mark of an image."""
    ids: list[int] = []
    for token in row:
        ids += [fill] * image_length if token == IMAGE else [token]
    return ids


def without_condition(row: Sequence[int], pad: int, image_length: int) -> list[int]:
    """The prompt `row` with pads between bos and begin-of-image, all attended to (janus.md d, g9)."""
    length = len(expanded(row, image_length))
    return [row[0], *[pad] * (length - 2), row[-1]]


def generation(rows: Sequence[Sequence[int]], image_length: int, codes: int) -> Sequences:
    """`prompt | code * (N - 1) | padding`: state 0 of an image is that of begin-of-image (janus.md d)."""
    whole = [expanded(row, image_length) for row in rows]
    ids, _ = padded([[*row, *[CODE] * (codes - 1)] for row in whole], _FILL)
    first = torch.tensor([len(row) - 1 for row in whole]).unsqueeze(1)
    return Sequences(ids, first + torch.arange(codes))


def conversation(
    rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], image_length: int
) -> tuple[Tensor, Tensor]:
    """`text | padding` as ids [B, L], and targets [B, L - 1] of the states: entry j is what state j predicts."""
    ids, _ = padded([expanded(row, image_length) for row in rows], _FILL)
    targets = []
    for row, own in zip(rows, labels, strict=True):
        lengths = [image_length if token == IMAGE else 1 for token in row]
        targets.append([label for label, n in zip(own, lengths, strict=True) for _ in range(n)])
    return ids, padded(targets, IGNORE)[0][:, 1:]


def prompts(rows: Sequence[Sequence[int]], image_length: int) -> Prompts:
    """`padding | prompt`: all prompts end in the last column, where generation begins."""
    return Prompts(*padded([expanded(row, image_length) for row in rows], _FILL, left=True))


def positions(real: Tensor) -> Tensor:
    """Rotary positions [B, L] of tokens that are `real` [B, L]: padding takes none (janus.md b)."""
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)
