"""Rectified-flow sampling from contexts (text-to-image, editing, think mode), and greedy text.

All guidance branches of a step run as rows of one batch. Source: docs/reference/bagel.md 4.
Letters: B images, N latent tokens, C values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from reca.core.finite import demand, finite_rows, rows_of
from reca.core.structure import NonNegative, Positive
from reca.models.bagel.config import BagelConfig
from reca.models.bagel.context import (
    Block,
    Context,
    clean_block,
    condition_blocks,
    empty,
    extend,
    prefix,
    read_block,
    run_blocks,
    stacked,
    text_block,
    velocity,
    vit_block,
)
from reca.models.bagel.network import Bagel, shifted
from reca.models.bagel.text import THINK_TO_DRAW, TextFrontEnd
from reca.models.bagel.vision import position_ids, prepared, resized, unpatchify
from reca.models.common import decoding
from reca.models.common.batching import moved, row_noise
from reca.models.common.options import check_generation, sampler_options

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.bagel.batch import Condition
    from reca.models.bagel.encoders import FrozenVae, Reader
    from reca.models.contract import Features, Sampling

_TINY = 1e-8
Renormalise = Literal["global", "channel", "text_channel"]
Branches = tuple[Tensor, Tensor | None, Tensor | None]
"""Velocities of the full context, without the text, and without the images."""


@dataclass(frozen=True)
class FlowOptions:
    """Sampling options; defaults are the authors' GenEval settings.

    `steps`: number of times, one more than evaluations. `guidance`: scale of the text (1 or less: off).
    `image_guidance`: scale of the source images (1: off). `temperature`: must be 1, a flow has none.
    `interval`: guidance applies for low < t <= high. `renormalise`, `renorm_min`: how a guided velocity is scaled back
    (1 turns it off). `norm_over`: `image`, or the complete `pack` as in the official code. `think`: generate a plan in
    text first, in at most `think_tokens`.
    """

    steps: int = 50
    guidance: float = 4.0
    temperature: float = 1.0
    image_guidance: NonNegative = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renormalise: Renormalise = "global"
    renorm_min: NonNegative = 0.0
    timestep_shift: Positive = 3.0
    norm_over: Literal["image", "pack"] = "image"
    think: bool = False
    think_tokens: int = 500

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"sampling.steps is {self.steps}; BAGEL needs at least 2 times")
        if self.temperature != 1:
            raise ValueError(
                f"sampling.temperature is {self.temperature}; a rectified flow has none, set 1"
            )

    @classmethod
    def of(cls, sampling: Sampling) -> FlowOptions:
        """Convert the contract's `Sampling`; ValueError for an option that BAGEL does not have."""
        return sampler_options(cls, sampling)

    @property
    def is_guided(self) -> bool:
        """Whether any evaluation needs more than the full context."""
        return self.guidance > 1

    @property
    def uses_image_branch(self) -> bool:
        """Whether the context without images is needed."""
        return self.is_guided and self.image_guidance > 1

    def guides_at(self, t: float) -> bool:
        """Whether guidance is on at time t."""
        return self.is_guided and self.interval[0] < t <= self.interval[1]


def times(steps: int, shift: float) -> Tensor:
    """The sampler's times from 1 to 0, float32 [S]; the last one is not evaluated."""
    return shifted(torch.linspace(1, 0, steps), shift)


def guided(branches: Branches, options: FlowOptions) -> Tensor:
    """The guided and renormalised velocity [B, N, C] of three branches (bagel.md 4)."""
    v, without_text, without_image = branches
    assert without_text is not None, "guidance needs the context without text"
    text = without_text + options.guidance * (v - without_text)
    if options.renormalise == "text_channel":
        text = text * _scale(v, text, options, per_token=True)
    if without_image is not None and options.image_guidance > 1:
        text = without_image + options.image_guidance * (text - without_image)
    if options.renormalise == "text_channel":
        return text
    return text * _scale(v, text, options, per_token=options.renormalise == "channel")


def _scale(v: Tensor, guided_v: Tensor, options: FlowOptions, per_token: bool) -> Tensor:
    """Factor that limits the guided velocity to the norm of `v` [B, N, C]; [B, 1 or N, 1]."""
    axes = [-1] if per_token else [-2, -1] if options.norm_over == "image" else [-3, -2, -1]
    norm, target_norm = (
        torch.linalg.vector_norm(part, dim=axes, keepdim=True) for part in (guided_v, v)
    )
    return (target_norm / (norm + _TINY)).clamp(min=options.renorm_min, max=1.0)


Velocity = Callable[[Tensor, float, bool], Branches]
"""(x [B, N, C], time, whether guidance is on) -> velocities of the branches."""


def sample(velocity: Velocity, noise: Tensor, options: FlowOptions) -> tuple[Tensor, list[Tensor]]:
    """Euler steps from noise [B, N, C] at t = 1 to t = 0: the latents, and x before each evaluation."""
    x, trajectory = noise, []
    moments = times(options.steps, options.timestep_shift)
    # differences in float32, as in the reference
    for t, step in zip(moments[:-1].tolist(), (moments[:-1] - moments[1:]).tolist(), strict=True):
        trajectory.append(x)
        on = options.guides_at(t)
        branches = velocity(x, t, on)
        v = guided(branches, options) if on else branches[0]
        x = x - v.float() * step
    return x, trajectory


# ---- the model -----------------------------------------------------------------------------------
class Parts(Protocol):
    """The parts of a model that sampling uses."""

    config: BagelConfig
    network: Bagel
    frozen: FrozenVae
    reader: Reader

    @property
    def text(self) -> TextFrontEnd:
        """The text front end."""
        ...


def autocast(model: Parts) -> torch.autocast:
    """bf16 autocast if the weights are in bf16, because experts of two dtypes meet in attention."""
    kept = {weight.dtype for weight in model.network.parameters()}
    device = model.network.vae2llm.weight.device.type
    return torch.autocast(device, torch.bfloat16, enabled=torch.bfloat16 in kept)


# ---- guidance ----------------------------------------------------------------------------------
class GuidedVelocity:
    """The velocities of up to three contexts, in one pass if guidance is on."""

    def __init__(
        self, network: Bagel, full: Context, others: Sequence[Context], latent_ids: Tensor
    ) -> None:
        self.network, self.full, self.ids = network, full, latent_ids
        self.all = stacked([full, *others]) if others else full
        self.branches = 1 + len(others)

    def __call__(self, x: Tensor, t: float, is_guided: bool) -> Branches:
        """Velocities [B, N, C] of the full context, the one without text, the one without images."""
        count = self.branches if is_guided else 1
        context = self.all if is_guided else self.full
        times = torch.full((count * len(x),), t, device=x.device)
        v = velocity(self.network, context, x.repeat(count, 1, 1), times, self.ids)
        parts = [*v.float().chunk(count), None, None]
        return parts[0], parts[1], parts[2]  # type: ignore[return-value]


def _latents(
    model: Parts,
    contexts: Sequence[Context],
    grid: tuple[int, int],
    options: FlowOptions,
    noise: Tensor,
) -> Tensor:
    """Latents [B, z, h, w] sampled after the full context; the other contexts are for guidance."""
    device = model.network.vae2llm.weight.device
    ids = moved(position_ids(grid, model.config.max_latent_size), device)
    drawn = GuidedVelocity(model.network, contexts[0], contexts[1:], ids)
    x, _ = sample(drawn, moved(noise, device), options)
    demand(finite_rows(x), "latents")
    return unpatchify(x, grid, model.config.latent_patch_size)


# ---- text to image -----------------------------------------------------------------------------
def draw(
    model: Parts,
    condition: Condition,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[Image]:
    """One image per row; see `BagelModel.generate`."""
    options = FlowOptions.of(sampling)
    check_generation(len(condition), generators)
    side, config = model.config.latent_side, model.config
    with autocast(model):
        if options.think:
            contexts, _ = thinking_contexts(model, condition, options.think_tokens)
        else:
            contexts = drawing_contexts(model, condition, options)
        noise = row_noise(
            generators,
            lambda g: torch.randn(config.latent_tokens, config.latent_width, generator=g),
        )
        used = contexts if options.is_guided else contexts[:1]
        found = _latents(model, used, (side, side), options, noise)
    return model.frozen.decode(found)


def drawing_contexts(model: Parts, condition: Condition, options: FlowOptions) -> list[Context]:
    """The full context; without the text; and, with image guidance and an image, the text alone."""
    full = _context(model.network, condition)
    without_text = _context(model.network, replace(condition, texts=[None] * len(condition)))
    if condition.seen is None or not options.uses_image_branch:
        return [full, without_text]
    return [full, without_text, _context(model.network, replace(condition, seen=None, grid=None))]


def _context(network: Bagel, condition: Condition) -> Context:
    return prefix(network, condition_blocks(network, condition), len(condition))


def thinking_contexts(
    model: Parts, condition: Condition, most: int
) -> tuple[list[Context], list[str]]:
    """[sys][image][prompt][thought] and [sys][image], and the thoughts (bagel.md 4, think mode)."""
    network, rows = model.network, len(condition)
    system = text_block(network, model.text.ids([THINK_TO_DRAW]) * rows)
    start = extend(network, empty(network, rows), [system], frozen=True)
    seen = condition_blocks(network, replace(condition, texts=[None] * rows))
    if seen:
        start = extend(network, start, seen, frozen=True)
    prompted = extend(network, start, [text_block(network, condition.texts)], frozen=True)
    thoughts = decoding.answers(greedy(network, prompted, most), model.text, rows)
    thought = text_block(network, model.text.ids(thoughts))
    full = extend(network, prompted, [thought], frozen=True)
    return [full, start], thoughts


# ---- editing -----------------------------------------------------------------------------------
def edit(
    model: Parts,
    images: Sequence[Image],
    instructions: Sequence[str],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[Image]:
    """Edited images with the sources' sizes under rule R; rows of equal size share a batch."""
    if not len(images) == len(instructions) == len(generators):
        raise ValueError(
            f"{len(images)} images, {len(instructions)} instructions and {len(generators)} generators; "
            "give one of each per edit"
        )
    options = FlowOptions.of(sampling)
    if options.think:
        raise ValueError("sampling.options.think is not supported for edits; remove it")
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
    model: Parts,
    images: Sequence[Image],
    texts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
    options: FlowOptions,
) -> Tensor:
    """Latents [B, N, C] of edited images, all of one size."""
    config, size = model.config, model.config.vae_size
    wide, high = resized(images[0].size, size.most, size.least, config.stride)
    grid = (high // config.stride, wide // config.stride)
    pixels = torch.stack([prepared(i, size.most, size.least, config.stride) for i in images])
    moments = model.frozen.moments(pixels)
    shape = (config.vae.z_channels, *moments.shape[-2:])
    posterior = row_noise(generators, lambda g: torch.randn(shape, generator=g), moments.device)
    clean = model.frozen.latents(moments, posterior)
    features = model.reader.read(model.network, images, config.edit_size)
    vit = vit_block(model.network, features["understanding"], features["grid"])
    contexts = editing_contexts(model.network, clean, vit, texts, options)
    noise = row_noise(
        generators, lambda g: torch.randn(grid[0] * grid[1], config.latent_width, generator=g)
    )
    return _latents(model, contexts, grid, options, noise)


def editing_contexts(
    network: Bagel,
    clean: Tensor,
    vit: Block,
    texts: Sequence[Sequence[int]],
    options: FlowOptions,
) -> list[Context]:
    """[VAE][ViT][text], [VAE][ViT] and, with image guidance, [text]; only those that guidance needs."""
    nothing, instruction = empty(network, len(texts)), text_block(network, texts)
    without_text = extend(network, nothing, [clean_block(network, clean)], frozen=True)
    without_text = extend(network, without_text, [vit], frozen=True)
    full = extend(network, without_text, [instruction], frozen=True)
    if not options.is_guided:
        return [full]
    if not options.uses_image_branch:
        return [full, without_text]
    return [full, without_text, extend(network, nothing, [instruction], frozen=True)]


# ---- text --------------------------------------------------------------------------------------
def answers(
    model: Parts, questions: Sequence[str], pictures: Sequence[Features], max_new_tokens: int
) -> list[str]:
    """Greedy answers after [ViT images in order][text] (bagel.md 4), one per row, up to EOS."""
    with autocast(model):
        context = question_context(model.network, model.text.ids(questions), pictures)
        steps = greedy(model.network, context, max_new_tokens)
        return decoding.answers(steps, model.text, len(questions))


def question_context(
    network: Bagel, questions: Sequence[Sequence[int]], pictures: Sequence[Features]
) -> Context:
    """Cached keys and values of questions after their images; `pictures[k]` has each row's k-th image."""
    context = empty(network, len(questions))
    for features in pictures[
        :-1
    ]:  # one by one: the mask of a single pass grows quadratically with their number
        context = extend(network, context, [read_block(network, features)], frozen=True)
    blocks = [read_block(network, features) for features in pictures[-1:]]
    return extend(network, context, [*blocks, text_block(network, questions)], frozen=True)


def greedy(network: Bagel, context: Context, most: int) -> decoding.Steps:
    """Logits [B, V] and greedy ids [B] after a context and a BOS, step by step; a row ends at EOS."""
    special, device = network.config.special, context.position.device
    one = torch.ones(len(context), dtype=torch.long, device=device)

    @torch.no_grad()
    def advance(tokens: Tensor) -> Tensor:
        nonlocal context
        block = Block(network.embed(tokens.unsqueeze(1)), True, one)
        context, hidden = run_blocks(network, context, [block], frozen=True)
        return network.logits(hidden.und[:, -1])

    return decoding.greedy(advance(one * special.bos), advance, special.eos, most)
