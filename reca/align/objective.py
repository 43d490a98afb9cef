"""The objective of RecA and of its controls.

    L = lambda_reca L_reca + lambda_i2t L_i2t + lambda_t2i L_t2i + lambda_text L_text     (paper eq. 4)

The task `edit` (source image and instruction in, edited image out) is not part of the paper's objective; it trains
a base model that edits, or trains one on your own edits. Every L is a mean over the tokens of an entire optimizer
step, so micro-batches and ranks only split the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from reca.config.recipe import TASKS
from reca.models.common.batching import moved
from reca.models.contract import (
    Features,
    Loss,
    UnifiedModel,
    editor,
    reconstruction_loss,
    text_to_image_loss,
)


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass of one task; everything random in it is already sampled.

    `count` is the number of tokens with a loss, known before the pass. `partner` is set in the shuffled
    control only: row i is conditioned on the embeddings of row `partner[i]`, never its own. `ablation` is that of the
    recipe.
    """

    task: str
    indices: list[int]
    count: int
    texts: Sequence[str] = ()
    noise: Any = None
    conversation: Any = None
    partner: Tensor | None = None
    ablation: str | None = None
    features: Features = field(default_factory=dict)  # empty until loaded, and for the task `text`
    # for `edit`: rows of the source images (`indices` are those of the targets), and their features
    sources: Sequence[int] = ()
    source: Features = field(default_factory=dict)


def task_loss(model: UnifiedModel, batch: MicroBatch) -> Loss:
    """The summed loss of one micro-batch."""
    if batch.task == "reca" and batch.partner is not None:
        return shuffled_loss(model, batch, batch.partner)
    if batch.task == "reca" and batch.ablation == "random_encoder":
        seen = in_random_basis(batch.features)
        condition = model.condition(batch.texts, seen)
        return model.generation_loss(batch.features, condition, batch.noise)
    if batch.task == "reca" and batch.ablation == "template_only":
        return text_to_image_loss(model, batch.texts, batch.features, batch.noise)
    if batch.task == "reca":
        return reconstruction_loss(model, batch.texts, batch.features, batch.noise)
    if batch.task == "t2i":
        return text_to_image_loss(model, batch.texts, batch.features, batch.noise)
    if batch.task in ("i2t", "text"):
        return model.answer_loss(batch.conversation, batch.features or None)
    if batch.task == "edit":
        return editor(model).edit_loss(batch.features, batch.source, batch.texts, batch.noise)
    raise ValueError(f"task {batch.task!r} is not known; choose one of: {', '.join(TASKS)}")


def shuffled_loss(model: UnifiedModel, batch: MicroBatch, partner: Tensor) -> Loss:
    """The control for L_reca: the same target and prompt, conditioned on the embeddings of another image.

    `partner` [B]: for each row, the row whose embeddings it is conditioned on.
    """
    other = {name: rows[moved(partner, rows.device)] for name, rows in batch.features.items()}
    condition = model.condition(batch.texts, other)
    return model.generation_loss(batch.features, condition, batch.noise)


def in_random_basis(features: Features) -> Features:
    """The control `random_encoder`: embeddings [B, (N,) D] turned by one fixed random rotation of their D axes.

    They tell as much about the image as before, like those of an untrained encoder, but not in the space that the model
    understands. ValueError where the cache holds no embeddings: codes, latents (a map), or the input of an encoder
    that is trained.
    """
    own = features.get("understanding")
    if own is None or not own.is_floating_point() or own.ndim > 3:
        raise ValueError(
            "arm random_encoder turns cached understanding embeddings, but this model caches none; leave the arm out"
        )
    return {
        **features,
        "understanding": own @ moved(_rotation(own.shape[-1]), own.device, own.dtype),
    }


@cache
def _rotation(width: int) -> Tensor:
    """A random rotation [width, width], the same in every run; decomposed once, not in every step."""
    generator = torch.Generator().manual_seed(width)
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A uniformly random permutation without fixed points, [B]; takes e tries on average."""
    if size < 2:
        raise ValueError(
            f"a batch of {size} has no other image; the shuffled control needs 2 or more"
        )
    own = torch.arange(size)
    while True:
        drawn = torch.randperm(size, generator=generator)
        if not (drawn == own).any():
            return drawn


class Objective(nn.Module):
    """The model and its loss as one module, so that sharding wraps a single forward pass.

    `forward` returns the fp32 sum over the micro-batch's tokens; the trainer divides by the step's count.
    """

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        """Loss sum of one micro-batch, float32 [] (scalar)."""
        loss = task_loss(self.model, batch)
        assert loss.count == batch.count, (
            f"{batch.task}: loss over {loss.count} tokens, but {batch.count} were announced"
        )
        return loss.total
