"""Layout of Janus-Pro's token sequences, in which negative ids are placeholders for image embeddings and codes.

All functions are pure, take token ids and run on the CPU, so that no length has to be read from a device. Attention is
causal; in training, padding is on the right and needs no mask. Source: docs/reference/janus.md b and d. Letters:
B batch, L sequence, P embeddings of an input image, N codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.common.batching import padded
from reca.models.common.tokenizer import IGNORE

IMAGE = -1
"""Placeholder for one understanding embedding; in a prompt that is not yet `expanded`, for a whole image."""

CODE = -2
"""Placeholder for the embedding of one code of the generated image."""

_FILL = 0  # padding id; no token attends to it


@dataclass(frozen=True)
class Sequences:
    """Training sequences: `ids` [B, L] with placeholders, and `states` [B, N], the positions that predict the codes."""

    ids: Tensor
    states: Tensor


@dataclass(frozen=True)
class Prompts:
    """Left-padded prompts for sampling: `ids` [B, L] with placeholders; `real` [B, L] (bool) is false for padding."""

    ids: Tensor
    real: Tensor


def expanded(row: Sequence[int], image_length: int, fill: int = IMAGE) -> list[int]:
    """A prompt with `image_length` times `fill` in place of its image placeholder."""
    ids: list[int] = []
    for token in row:
        ids += [fill] * image_length if token == IMAGE else [token]
    return ids


def without_condition(row: Sequence[int], pad: int, image_length: int) -> list[int]:
    """The prompt with pads, which are attended to, in place of all between BOS and begin-of-image (janus.md d, g9)."""
    length = len(expanded(row, image_length))
    return [row[0], *[pad] * (length - 2), row[-1]]


def generation(rows: Sequence[Sequence[int]], image_length: int, codes: int) -> Sequences:
    """Sequences `prompt | N - 1 codes | padding`; the state at begin-of-image predicts the first code (janus.md d)."""
    whole = [expanded(row, image_length) for row in rows]
    ids, _ = padded([[*row, *[CODE] * (codes - 1)] for row in whole], _FILL)
    first = torch.tensor([len(row) - 1 for row in whole]).unsqueeze(1)
    return Sequences(ids, first + torch.arange(codes))


def conversation(
    rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], image_length: int
) -> tuple[Tensor, Tensor]:
    """Ids [B, L] of `text | padding`, and targets [B, L - 1], where entry j is the label that state j predicts."""
    ids, _ = padded([expanded(row, image_length) for row in rows], _FILL)
    targets = []
    for row, own in zip(rows, labels, strict=True):
        lengths = [image_length if token == IMAGE else 1 for token in row]
        targets.append([label for label, n in zip(own, lengths, strict=True) for _ in range(n)])
    return ids, padded(targets, IGNORE)[0][:, 1:]


def prompts(rows: Sequence[Sequence[int]], image_length: int) -> Prompts:
    """Sequences `padding | prompt`: all prompts end in the last column, where generation begins."""
    return Prompts(*padded([expanded(row, image_length) for row in rows], _FILL, left=True))


def positions(real: Tensor) -> Tensor:
    """Rotary positions [B, L] that count `real` tokens [B, L] only (janus.md b)."""
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)
