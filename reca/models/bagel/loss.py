"""BAGEL's losses: velocity of a generated image (RecA, text-to-image) or an edit, and answers.

A condition becomes a context of blocks or one pack (`context`, `layout`), the network runs, and the loss reduces.
Source: docs/reference/bagel.md 2, 3, and points 7 and 8 of section 7. Letters: B images, N latent tokens, C
values of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from reca_kernels import Implementation, flow_matching_loss, linear_cross_entropy
from torch import Tensor

from reca.models.bagel.batch import Condition, Conversation, EditNoise, FlowNoise
from reca.models.bagel.config import BagelConfig, BagelOptions
from reca.models.bagel.context import (
    Block,
    clean_block,
    condition_blocks,
    drawn_states,
    empty,
    prefix,
    read_block,
    run_blocks,
    text_block,
    vit_block,
)
from reca.models.bagel.layout import generation_pack
from reca.models.bagel.network import Bagel, shifted
from reca.models.bagel.packed import PackInputs, on_device, run_pack, target_places
from reca.models.bagel.vision import patchify, position_ids
from reca.models.common.batching import moved, with_targets

if TYPE_CHECKING:
    from reca.models.bagel.encoders import FrozenVae
    from reca.models.contract import Features


# ---- a point between image and noise -----------------------------------------------------------
@dataclass(frozen=True)
class Noised:
    """A point x [B, N, C] at time t [B] between clean latent tokens and noise, [B, N, C] each."""

    x: Tensor
    t: Tensor
    clean: Tensor
    noise: Tensor


def flow_time(raw: Tensor, shift: float) -> Tensor:
    """Flow time in [0, 1] for standard normal samples, float32; -inf (a clean image) gives 0."""
    return shifted(torch.sigmoid(raw.float()), shift)


def noised(clean: Tensor, noise: Tensor, raw: Tensor, shift: float) -> Noised:
    """x_t = (1 - t) z + t eps, mixed in float32, from clean latent tokens z and eps [B, N, C], raw [B]."""
    t = flow_time(raw, shift)
    clean, noise = clean.float(), noise.float()
    mix = t[:, None, None]
    return Noised((1 - mix) * clean + mix * noise, t, clean, noise)


def velocity_loss(
    network: Bagel, states: Tensor, point: Noised, implementation: Implementation = "auto"
) -> Tensor:
    """Sum over tokens of the mean over channels of (llm2vae(states) - (noise - clean))^2, float32 scalar.

    `states` [..., D] are those of the latent tokens, in the order of the point.
    """
    head = network.llm2vae
    clean, noise = (part.reshape(*states.shape[:-1], -1) for part in (point.clean, point.noise))
    return flow_matching_loss(
        states,
        head.weight,
        head.bias,
        clean,
        noise,
        reduction="sum",
        implementation=implementation,
    )


def _tokens(vae: FrozenVae, moments: Tensor, noise: Tensor, patch: int) -> Tensor:
    """Clean latent tokens [B, N, C] of moments [B, 2z, h, w], on the VAE's device."""
    return patchify(vae.latents(moved(moments, vae.device), moved(noise, vae.device)), patch)


def _latent_ids(network: Bagel) -> Tensor:
    """Position ids [N] of the latent tokens of one image."""
    side, table = network.config.latent_side, network.config.max_latent_size
    return moved(position_ids((side, side), table), network.vae2llm.weight.device)


# ---- generation ----------------------------------------------------------------------------------
def sample_noise(
    config: BagelConfig, options: BagelOptions, batch: int, generator: torch.Generator
) -> FlowNoise:
    """Normal: time, noise, posterior; uniform: text dropout; normal: a VAE condition's posterior; in this order."""
    side = config.latent_side * config.latent_patch_size
    z = config.vae.z_channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    sampled = (normal(), normal(config.latent_tokens, config.latent_width), normal(z, side, side))
    dropout = torch.rand(batch, generator=generator)
    if options.condition == "vit":
        return FlowNoise(*sampled, dropout)
    small = config.condition_resolution // config.vae.downsample
    return FlowNoise(*sampled, dropout, normal(z, small, small))


def generation_loss(
    network: Bagel,
    vae: FrozenVae,
    options: BagelOptions,
    target: Features,
    condition: Condition,
    noise: FlowNoise,
) -> Tensor:
    """Velocity loss (bagel.md 3), summed over latent tokens, float32 []; `options.step` selects one pass or two."""
    device = network.vae2llm.weight.device
    clean = _tokens(vae, target["target"], noise.posterior, network.config.latent_patch_size)
    point = noised(
        clean, moved(noise.gaussian, device), moved(noise.raw, device), options.timestep_shift
    )
    condition = with_dropped_texts(condition, noise, options)
    if options.step == "packed":
        return _packed_loss(network, vae, options, condition, noise, point)
    with torch.no_grad():
        blocks = condition_blocks(network, condition)
    return prefixed_loss(network, blocks, point, _latent_ids(network), options.implementation)


def with_dropped_texts(condition: Condition, noise: FlowNoise, options: BagelOptions) -> Condition:
    """The condition with text dropout applied."""
    share = options.text_dropout
    if condition.seen is not None and options.template_dropout is not None:
        share = options.template_dropout
    dropped = (noise.text_dropout < share).tolist()
    texts = [None if drop else t for t, drop in zip(condition.texts, dropped, strict=True)]
    return Condition(texts, condition.seen, condition.grid)


def prefixed_loss(
    network: Bagel,
    blocks: Sequence[Block],
    point: Noised,
    latent_ids: Tensor,
    implementation: Implementation = "auto",
    *,
    frozen: bool = True,
    learns: bool = False,
) -> Tensor:
    """The summed velocity loss of a point after a prefix of blocks: the prefix runs first, then the noise block.

    `latent_ids` [N]: positions in the latent table. `frozen`: no gradient through und tokens. `learns`: the prefix
    has trained tokens (clean latents), so it runs with gradient.
    """
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        context = prefix(network, blocks, len(point.x), frozen=frozen)
    states = drawn_states(network, context, point.x, point.t, latent_ids, frozen=frozen)
    return velocity_loss(network, states, point, implementation)


def _packed_loss(
    network: Bagel,
    vae: FrozenVae,
    options: BagelOptions,
    condition: Condition,
    noise: FlowNoise,
    point: Noised,
) -> Tensor:
    """The velocity loss in one packed pass, [], as the official step computes it (bagel.md 5)."""
    packed = on_device(generation_pack(condition, network.config), point.x.device)
    states = run_pack(
        network,
        packed,
        _pack_inputs(network, vae, condition, noise, point),
        frozen=options.freeze_und,
        implementation=options.implementation,
    )
    targets = states.latent[target_places(packed)]
    return velocity_loss(network, targets, point, options.implementation)


def _pack_inputs(
    network: Bagel, vae: FrozenVae, condition: Condition, noise: FlowNoise, point: Noised
) -> PackInputs:
    """ViT states, and for each row the clean latents (time 0) before the noisy ones."""
    weight = network.connector.fc1.weight
    vit = point.x.new_zeros(0, network.config.vit.hidden_size)
    x, t = point.x, point.t.unsqueeze(1).expand(point.x.shape[:2])
    if condition.seen is not None and condition.grid is not None:
        sizes = condition.grid.prod(dim=1).tolist()
        rows = zip(moved(condition.seen, weight.device), sizes, strict=True)
        vit = torch.cat([states[:size] for states, size in rows]).to(weight.dtype)
    elif condition.seen is not None:
        assert noise.condition is not None, "sampled with options.condition vae"
        clean = _tokens(vae, condition.seen, noise.condition, network.config.latent_patch_size)
        x, t = torch.cat([clean, x], dim=1), torch.cat([t.new_zeros(clean.shape[:2]), t], dim=1)
    return PackInputs(vit, x.flatten(0, 1), t.flatten())


# ---- edits ---------------------------------------------------------------------------------------
def sample_edit_noise(config: BagelConfig, batch: int, generator: torch.Generator) -> EditNoise:
    """Normal: time, noise, both posteriors; uniform: dropout; in this order."""
    side = config.latent_side * config.latent_patch_size
    latent = (config.vae.z_channels, side, side)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    raw, noise = normal(), normal(config.latent_tokens, config.latent_width)
    target, source = normal(*latent), normal(*latent)
    return EditNoise(raw, noise, target, source, torch.rand(batch, 3, generator=generator))


def edit_loss(
    network: Bagel,
    vae: FrozenVae,
    options: BagelOptions,
    target: Features,
    source: Features,
    texts: Sequence[Sequence[int]],
    noise: EditNoise,
) -> Tensor:
    """Velocity loss of the target after [VAE(source)][ViT(source)][text] (bagel.md 2), summed over its latent tokens.

    Clean latents are gen tokens, so the prefix needs gradients, unlike RecA's (bagel.md 7.8).
    """
    device, patch = vae.device, network.config.latent_patch_size
    wanted = _tokens(vae, target["target"], noise.target, patch)
    point = noised(
        wanted, moved(noise.gaussian, device), moved(noise.raw, device), options.timestep_shift
    )
    latents = vae.latents(moved(source["target"], device), moved(noise.source, device))
    limits = (options.edit_vae_dropout, options.edit_vit_dropout, options.text_dropout)
    dropped = noise.dropout < torch.tensor(limits)
    kept = [None if drop else ids for ids, drop in zip(texts, dropped[:, 2].tolist(), strict=True)]
    blocks = [
        without(clean_block(network, latents), dropped[:, 0]),
        without(vit_block(network, source["understanding"], source["grid"]), dropped[:, 1]),
        text_block(network, kept),
    ]
    return prefixed_loss(
        network,
        blocks,
        point,
        _latent_ids(network),
        options.implementation,
        frozen=options.freeze_und,
        learns=True,
    )


def without(block: Block, dropped: Tensor) -> Block:
    """The block without the rows in `dropped` [B], whose rope id still advances (bagel.md 2)."""
    if not bool(dropped.any()):
        return block
    length = block.und.shape[1] + (0 if block.gen is None else block.gen.shape[1])
    kept = moved(~dropped, block.und.device).unsqueeze(1)
    valid = kept.expand(-1, length)
    return replace(block, valid=valid if block.valid is None else block.valid & valid)


# ---- answers -------------------------------------------------------------------------------------
def answer_loss(
    network: Bagel,
    conversation: Conversation,
    features: Features | None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Next-token cross-entropy on answers (bagel.md 3), summed, float32 [], with gradients for all trained weights."""
    device = network.vae2llm.weight.device
    ids = moved(conversation.ids, device)
    blocks = [] if features is None else [read_block(network, features)]
    blocks.append(Block(network.embed(ids), True, moved(conversation.lengths, device)))
    _, hidden = run_blocks(network, empty(network, len(ids)), blocks)
    said, labels = with_targets(hidden.und[:, -ids.shape[1] :], conversation.labels)
    return linear_cross_entropy(
        said,
        network.language_model.lm_head.weight,
        labels,
        reduction="sum",
        all_valid=True,
        implementation=implementation,
    )
