"""The edit loss: draw the target behind [clean latents of the source][what was seen of it][instruction].

Clean latents are gen tokens, so the prefix carries gradient: it runs once with it, unlike RecA's (bagel.md 7.8).
Source: docs/reference/bagel.md 2, layout and dropout of the edit sample. Letters: B edits, N latent tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from reca_kernels import Implementation
from torch import Tensor

from reca.models.bagel.context import Block, drawn_states, empty, extend, text_block
from reca.models.bagel.drawing import clean_block
from reca.models.bagel.flow import Noised, noised, velocity_loss
from reca.models.bagel.vision import patchify

if TYPE_CHECKING:
    from reca.models.bagel.model import BagelModel
    from reca.models.bagel.network import Bagel
    from reca.models.contract import Features


@dataclass(frozen=True)
class EditNoise:
    """Noise of an edit loss: raw times [B], `gaussian` [B, N, C], posterior noise of target and source [B, z, h, w].

    `dropout` [B, 3] are uniform numbers that decide whether a row loses its clean latents, what was seen, and its text.
    """

    raw: Tensor
    gaussian: Tensor
    target: Tensor
    source: Tensor
    dropout: Tensor

    @property
    def count(self) -> int:
        """Latent tokens that carry the loss."""
        return self.gaussian.shape[0] * self.gaussian.shape[1]


def sample_noise(model: BagelModel, batch: int, generator: torch.Generator) -> EditNoise:
    """Normal: time, noise, both posteriors; uniform: dropout; in this order."""
    config = model.config
    side = config.latent_side * config.latent_patch_size
    latent = (config.vae.z_channels, side, side)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    raw, noise = normal(), normal(config.latent_tokens, config.latent_width)
    target, source = normal(*latent), normal(*latent)
    return EditNoise(raw, noise, target, source, torch.rand(batch, 3, generator=generator))


def loss(
    model: BagelModel,
    target: Features,
    source: Features,
    instructions: Sequence[str],
    drawn: EditNoise,
) -> Tensor:
    """Velocity loss summed over the target's latent tokens, scalar."""
    device, patch = model.network.vae2llm.weight.device, model.config.latent_patch_size

    def latents(features: Features, noise: Tensor) -> Tensor:
        return model.frozen.latents(features["target"].to(device), noise.to(device))

    wanted = patchify(latents(target, drawn.target), patch)
    shift = model.options.timestep_shift
    point = noised(wanted, drawn.gaussian.to(device), drawn.raw.to(device), shift)
    vit = model.vit_block(source["understanding"], source["grid"])
    clean = clean_block(model, latents(source, drawn.source))
    options = model.options
    limits = torch.tensor(
        [options.edit_vae_dropout, options.edit_vit_dropout, options.text_dropout]
    )
    dropped = drawn.dropout < limits
    texts = [
        None if drop else ids
        for ids, drop in zip(model.text.ids(instructions), dropped[:, 2].tolist(), strict=True)
    ]
    told = text_block(model.network, texts)
    blocks = [without(clean, dropped[:, 0]), without(vit, dropped[:, 1]), told]
    return behind(
        model.network,
        blocks,
        point,
        model._latent_ids,
        frozen=options.freeze_und,
        implementation=options.implementation,
    )


def without(block: Block, dropped: Tensor) -> Block:
    """The block with no token in the rows of `dropped` [B]; their rope id still moves on (bagel.md 2)."""
    if not bool(dropped.any()):
        return block
    length = block.und.shape[1] + (0 if block.gen is None else block.gen.shape[1])
    kept = ~dropped.to(block.und.device).unsqueeze(1)
    valid = kept.expand(-1, length)
    return replace(block, valid=valid if block.valid is None else block.valid & valid)


def behind(
    network: Bagel,
    blocks: Sequence[Block],
    point: Noised,
    latent_ids: Tensor,
    *,
    frozen: bool,
    implementation: Implementation = "auto",
) -> Tensor:
    """The summed velocity loss of a point behind a prefix that may hold trained tokens; `latent_ids` [N]: places."""
    context, _ = extend(network, empty(network, len(point.x)), blocks, frozen=frozen)
    states = drawn_states(network, context, point.x, point.t, latent_ids, frozen=frozen)
    return velocity_loss(network, states, point, implementation)
