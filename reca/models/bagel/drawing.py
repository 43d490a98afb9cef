"""Pictures from contexts: text to image, editing, thinking first, and greedy text.

All guidance branches of a step run as rows of one batch. Source: docs/reference/bagel.md 4.
Letters: B pictures, N latent tokens, C values of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reca.core.finite import chosen_finite, demand, finite_rows, rows_of
from reca.models.bagel.context import (
    Block,
    Context,
    empty,
    extend,
    picture_block,
    stacked,
    text_block,
    velocity,
)
from reca.models.bagel.sampler import Branches, FlowOptions, sample
from reca.models.bagel.text import THINK_TO_DRAW
from reca.models.bagel.vision import patchify, position_ids, prepared, resized, unpatchify

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.bagel.batch import Condition
    from reca.models.bagel.model import BagelModel
    from reca.models.bagel.network import Bagel
    from reca.models.contract import Sampling


def autocast(model: BagelModel) -> torch.autocast:
    """bf16 where the weights are kept in it: experts of two dtypes meet in attention."""
    kept = {weight.dtype for weight in model.network.parameters()}
    device = model.network.vae2llm.weight.device.type
    return torch.autocast(device, torch.bfloat16, enabled=torch.bfloat16 in kept)


# ---- guidance ----------------------------------------------------------------------------------
class GuidedVelocity:
    """The velocities of up to three contexts, in one pass where guidance is on."""

    def __init__(
        self, network: Bagel, full: Context, others: Sequence[Context], latent_ids: Tensor
    ) -> None:
        self.network, self.full, self.ids = network, full, latent_ids
        self.all = stacked([full, *others]) if others else full
        self.branches = 1 + len(others)

    def __call__(self, x: Tensor, t: float, is_guided: bool) -> Branches:
        """Velocities [B, N, C] of the full context, the one without text, the one without pictures."""
        count = self.branches if is_guided else 1
        context = self.all if is_guided else self.full
        times = torch.full((count * len(x),), t, device=x.device)
        v = velocity(self.network, context, x.repeat(count, 1, 1), times, self.ids)
        parts = [*v.float().chunk(count), None, None]
        return parts[0], parts[1], parts[2]  # type: ignore[return-value]


def noise_of(generators: Sequence[torch.Generator], tokens: int, width: int) -> Tensor:
    """Initial noise [B, N, C], each row from its own generator, on the CPU in float32."""
    return torch.stack([torch.randn(tokens, width, generator=g) for g in generators])


def _latents(
    model: BagelModel,
    contexts: Sequence[Context],
    grid: tuple[int, int],
    options: FlowOptions,
    noise: Tensor,
) -> Tensor:
    """Latents [B, z, h, w] drawn behind the full context; the other contexts are for guidance."""
    device = model.network.vae2llm.weight.device
    ids = position_ids(grid, model.config.max_latent_size).to(device)
    drawn = GuidedVelocity(model.network, contexts[0], contexts[1:], ids)
    x, _ = sample(drawn, noise.to(device), options)
    demand(finite_rows(x), "latents")
    return unpatchify(x, grid, model.config.latent_patch_size)


def options_of(sampling: Sampling) -> tuple[FlowOptions, bool, int]:
    """How latents are integrated, whether the model thinks first, and in how many tokens at most."""
    extra = dict(sampling.options or {})
    think, most = bool(extra.pop("think", False)), int(extra.pop("think_tokens", 500))
    return FlowOptions.of(replace(sampling, options=extra)), think, most


# ---- text to image -----------------------------------------------------------------------------
def draw(
    model: BagelModel,
    condition: Condition,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[Image]:
    """One picture per row; see `BagelModel.generate`. `extra.think` lets the model plan in words first."""
    options, think, most = options_of(sampling)
    if len(generators) != len(condition):
        raise ValueError(
            f"{len(condition)} pictures need as many generators, got {len(generators)}"
        )
    side, config = model.config.latent_side, model.config
    with autocast(model):
        if think:
            contexts, _ = thinking_contexts(model, condition, most)
        else:
            contexts = drawing_contexts(model, condition, options)
        noise = noise_of(generators, config.latent_tokens, config.latent_width)
        used = contexts if options.is_guided else contexts[:1]
        found = _latents(model, used, (side, side), options, noise)
    return model.frozen.decode(found)


def drawing_contexts(
    model: BagelModel, condition: Condition, options: FlowOptions
) -> list[Context]:
    """Everything; without the text; and, where image guidance is on and there is a picture, the text alone."""
    full = model.context(condition)
    without_text = model.context(replace(condition, texts=[None] * len(condition)))
    if condition.seen is None or not options.uses_image_branch:
        return [full, without_text]
    return [full, without_text, model.context(replace(condition, seen=None, grid=None))]


def thinking_contexts(
    model: BagelModel, condition: Condition, most: int
) -> tuple[list[Context], list[str]]:
    """[sys][picture][prompt][thought] and [sys][picture], and the thoughts (bagel.md 4, think mode)."""
    network, rows = model.network, len(condition)
    system = text_block(network, model.text.ids([THINK_TO_DRAW]) * rows)
    start, _ = extend(network, empty(network, rows), [system], frozen=True)
    seen = model.blocks(replace(condition, texts=[None] * rows))
    if seen:
        start, _ = extend(network, start, seen, frozen=True)
    asked, _ = extend(network, start, [text_block(network, condition.texts)], frozen=True)
    thoughts = [model.text.decoded(ids) for ids in greedy(network, asked, most)]
    thought = text_block(network, model.text.ids(thoughts))
    full, _ = extend(network, asked, [thought], frozen=True)
    return [full, start], thoughts


# ---- editing -----------------------------------------------------------------------------------
def edit(
    model: BagelModel,
    images: Sequence[Image],
    instructions: Sequence[str],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[Image]:
    """Edited pictures of the sources' sizes under rule R; rows of equal sizes share a batch."""
    if not len(images) == len(instructions) == len(generators):
        raise ValueError(
            f"{len(images)} pictures, {len(instructions)} instructions and {len(generators)} generators; "
            "give one of each per edit"
        )
    options = FlowOptions.of(sampling)
    texts = model.text.ids(instructions)
    groups: dict[Any, list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image.size, []).append(row)
    done: dict[int, Image] = {}
    for rows in groups.values():
        chosen = (
            [images[r] for r in rows],
            [texts[r] for r in rows],
            [generators[r] for r in rows],
        )
        with rows_of(rows):
            with autocast(model):
                found = _edited(model, *chosen, options)
            done |= zip(rows, model.frozen.decode(found), strict=True)
    return [done[row] for row in range(len(images))]


def _edited(
    model: BagelModel,
    images: Sequence[Image],
    texts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
    options: FlowOptions,
) -> Tensor:
    config, size = model.config, model.config.vae_size
    wide, high = resized(images[0].size, size.most, size.least, config.stride)
    grid = (high // config.stride, wide // config.stride)
    pixels = torch.stack([prepared(i, size.most, size.least, config.stride) for i in images])
    moments = model.frozen.moments(pixels)
    shape = (config.vae.z_channels, *moments.shape[-2:])
    posterior = torch.stack([torch.randn(shape, generator=g) for g in generators])
    clean = model.frozen.latents(moments, posterior.to(moments.device))
    features = model._reader.read(model.network, images, config.edit_size)
    vit = model.vit_block(features["understanding"], features["grid"])
    contexts = editing_contexts(model, clean, vit, texts, options)
    noise = noise_of(generators, grid[0] * grid[1], config.latent_width)
    return _latents(model, contexts, grid, options, noise)


def clean_block(model: BagelModel, clean: Tensor) -> Block:
    """A picture as clean latents [B, z, h, w] at time 0."""
    config, network = model.config, model.network
    patch = config.latent_patch_size
    grid = (clean.shape[-2] // patch, clean.shape[-1] // patch)
    ids = position_ids(grid, config.max_latent_size).to(clean.device)
    start = clean.new_zeros(len(clean), 1)
    tokens = network.latents_in(patchify(clean, patch), start, ids)
    return picture_block(network, tokens, is_latent=True)


def editing_contexts(
    model: BagelModel,
    clean: Tensor,
    vit: Block,
    texts: Sequence[Sequence[int]],
    options: FlowOptions,
) -> list[Context]:
    """[VAE][ViT][text], [VAE][ViT] and, where image guidance is on, [text]; as many as guidance needs."""
    network = model.network
    nothing, told = empty(network, len(texts)), text_block(network, texts)
    without_text, _ = extend(network, nothing, [clean_block(model, clean)], frozen=True)
    without_text, _ = extend(network, without_text, [vit], frozen=True)
    full, _ = extend(network, without_text, [told], frozen=True)
    if not options.is_guided:
        return [full]
    if not options.uses_image_branch:
        return [full, without_text]
    return [full, without_text, extend(network, nothing, [told], frozen=True)[0]]


# ---- words -------------------------------------------------------------------------------------
@torch.no_grad()
def greedy(
    network: Bagel, context: Context, most: int, collect: list[Tensor] | None = None
) -> list[list[int]]:
    """Greedy ids behind a context, without the BOS that starts them; a row ends at EOS.

    `collect` receives each step's logits [B, V]. NonFinite names rows whose logits were not finite.
    """
    special = network.config.special
    rows: list[list[int]] = [[] for _ in range(len(context))]
    device = context.position.device
    tokens = torch.full((len(context), 1), special.bos, device=device)
    one = torch.ones(len(context), dtype=torch.long, device=device)
    ended = torch.zeros(len(context), dtype=torch.bool, device=device)
    finite = torch.ones_like(ended)
    for _ in range(most):
        block = Block(network.embed(tokens), True, one)
        context, hidden = extend(network, context, [block], frozen=True)
        logits = network.logits(hidden.und[:, -1])
        if collect is not None:
            collect.append(logits)
        tokens = logits.argmax(-1, keepdim=True)
        finite = finite & (ended | chosen_finite(logits, tokens[:, 0]))
        for row, token, over in zip(rows, tokens[:, 0].tolist(), ended.tolist(), strict=True):
            if not over:
                row.append(token)
        ended |= tokens[:, 0] == special.eos
        if bool(ended.all()):
            break
    demand(finite, "logits of the answers")
    return rows
