"""OpenUni's losses: the velocity of an image from its condition (RecA, text to image), and answers.

Source: docs/reference/openuni.md d. Letters: B images, T text, Q queries, C latent channels, D width of a condition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.models.common.batching import moved, padded, with_targets
from reca.models.contract import Loss
from reca.models.openuni import layout
from reca.models.openuni.batch import Condition, Conversation, FlowNoise
from reca.models.openuni.config import HEAD_TOKENS, OpenUniConfig, OpenUniOptions
from reca.models.openuni.context import conditions
from reca.models.openuni.network import OpenUni

if TYPE_CHECKING:
    from reca.models.contract import Features

TRAIN_STEPS = 1000


# ---- a point on the way from image to noise ------------------------------------------------------
@dataclass(frozen=True)
class Noised:
    """A point z [B, C, h, w] at timesteps t [B] on the way from latents to noise, and the velocity there."""

    z: Tensor
    t: Tensor
    velocity: Tensor


def sigmas(shift: float = 1.0) -> Tensor:
    """Training noise levels [1000] by index, from 1 down to 0.001 where `shift` is 1 (openuni.md a6)."""
    found = torch.arange(TRAIN_STEPS, 0, -1, dtype=torch.float32, device="cpu") / TRAIN_STEPS
    return shift * found / (1 + (shift - 1) * found)


def noised(latents: Tensor, noise: Tensor, uniform: Tensor, shift: float = 1.0) -> Noised:
    """The point (1 - sigma) x + sigma eps, mixed in float32, of latents x and eps [B, C, h, w]; uniform [B]."""
    index = (uniform * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
    sigma = moved(sigmas(shift)[index], latents.device)
    mix = sigma[:, None, None, None]
    latents, noise = latents.float(), noise.float()
    return Noised((1 - mix) * latents + mix * noise, TRAIN_STEPS * sigma, noise - latents)


# ---- generation ----------------------------------------------------------------------------------
def sample_noise(
    config: OpenUniConfig, options: OpenUniOptions, batch: int, generator: torch.Generator
) -> FlowNoise:
    """Uniform: time; normal: noise; uniform: text dropout and, where it acts, stochastic depth; in this order."""
    uniform = torch.rand(batch, generator=generator)
    gaussian = torch.randn(batch, *config.latent_shape, generator=generator)
    dropout = torch.rand(batch, generator=generator)
    if not options.stochastic_depth:
        return FlowNoise(uniform, gaussian, dropout)
    layers = config.vit.num_hidden_layers
    return FlowNoise(uniform, gaussian, dropout, torch.rand(layers, 2, batch, generator=generator))


def generation_loss(
    network: OpenUni,
    options: OpenUniOptions,
    target: Features,
    condition: Condition,
    noise: FlowNoise,
) -> Loss:
    """Velocity loss (openuni.md d), summed over latent tokens, each the mean over its channels, in fp32."""
    device = network.device
    clean, gaussian = moved(target["target"], device), moved(noise.gaussian, device)
    point = noised(clean, gaussian, noise.uniform, options.timestep_shift)
    given = conditions(network, options, with_dropped_texts(condition, noise, options), noise.depth)
    found = network.velocity(point.z.to(given.dtype), given, point.t)
    error = (found.float() - point.velocity).square()
    return Loss(error.mean(dim=1).sum(), noise.count)


def with_dropped_texts(
    condition: Condition, noise: FlowNoise, options: OpenUniOptions
) -> Condition:
    """The condition of a training step: captions cut to length, some dropped; reconstructions keep everything."""
    if condition.has_image:
        return condition
    header = HEAD_TOKENS if options.keep_header else 0
    dropped = (noise.text_dropout < options.text_dropout).tolist()
    texts = [
        condition.dropped if drop else layout.trimmed(text, options.max_prompt, header)
        for text, drop in zip(condition.texts, dropped, strict=True)
    ]
    return replace(condition, texts=texts)


# ---- answers -------------------------------------------------------------------------------------
def answer_loss(
    network: OpenUni,
    options: OpenUniOptions,
    conversation: Conversation,
    understanding: Tensor | None,
) -> Loss:
    """Next-token cross-entropy (fp32) on answers, with gradient to whatever of the reader is trained.

    OpenUni's recipes have no such loss; it makes a reader where there is none (the laptop's).
    """
    ids, mask = padded(conversation.ids, network.config.special.end)  # on the host
    states = network.hidden(network.embed(ids, understanding), mask, layout.positions(mask))
    said, labels = with_targets(states[:, :-1], layout.next_labels(conversation.labels))
    total = linear_cross_entropy(
        said,
        network.lmm.lm_head.weight,
        labels,
        reduction="sum",
        all_valid=True,
        implementation=options.implementation,
    )
    return Loss(total, conversation.count)
