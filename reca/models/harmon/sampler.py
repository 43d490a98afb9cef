"""Harmon's sampler: a MaskGIT-style loop that samples tokens by reverse diffusion, and greedy answers.

What does not change between steps is computed once: keys and values of each distinct prompt, position tables, the
schedule. Both halves of guidance share the encoder. Source: docs/reference/harmon.md d3, d4 and g.
Letters: B images, G sequences (B, or 2B with guidance), L latents of an image, V visible ones, S buffers,
R tokens sampled in a step, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.core.finite import demand, finite_rows
from reca.models.common import decoding
from reca.models.common.attention import KeyValueCache
from reca.models.common.batching import moved, row_noise
from reca.models.common.options import check_generation, sampler_options
from reca.models.harmon import layout as layouts
from reca.models.harmon.denoiser import Denoiser
from reca.models.harmon.network import (
    Harmon,
    condition_image,
    embed_prompts,
    for_sampling,
    read_image,
)

if TYPE_CHECKING:
    from reca.models.contract import Sampling
    from reca.models.harmon.batch import Condition

Noise = Callable[[int], tuple[Tensor, Tensor]]
"""Tokens R per image -> initial noise [B * R, C] and noise of the reverse steps [steps, B * R, C]."""


@dataclass(frozen=True)
class SamplerOptions:
    """Sampling options; the defaults are those of the published script.

    `guidance` s: noise is u + s (c - u), so 1 means none (0 is read as 1). `schedule` `linear` raises it from 1 to
    s over the steps. `temperature` scales the noise of the reverse process, not its start. Numbers that no sampler can
    use are rejected by the contract's `Sampling`.
    """

    guidance: float = 3.0
    steps: int = 64
    temperature: float = 1.0
    schedule: Literal["constant", "linear"] = "constant"

    @classmethod
    def of(cls, sampling: Sampling) -> SamplerOptions:
        """Convert the contract's `Sampling`; ValueError for an option that Harmon does not have."""
        return sampler_options(cls, sampling)

    @property
    def guided(self) -> bool:
        """Whether unconditional sequences are needed."""
        return self.guidance not in (0, 1)

    def scale(self, kept: int, tokens: int) -> float:
        """Guidance scale of a step after which `kept` of `tokens` stay masked."""
        if not self.guided:
            return 1.0
        if self.schedule == "constant":
            return self.guidance
        return 1 + (self.guidance - 1) * (tokens - kept) / tokens


def kept_masked(step: int, steps: int, tokens: int, masked: int) -> int:
    """Number of tokens left masked by the cosine schedule after 0-based `step`, in integers (harmon.md d4)."""
    remaining = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
    return max(1, min(masked - 1, remaining))


class RowNoise:
    """Noise of the sampler; image i uses `generators[i]` only and does not depend on its batch."""

    def __init__(
        self, generators: Sequence[torch.Generator], steps: int, channels: int, device: torch.device
    ) -> None:
        self.generators, self.steps, self.channels = generators, steps, channels
        self.device = device

    def orders(self, tokens: int) -> Tensor:
        """A random order of the tokens of each image [B, L]; sampled first."""
        return row_noise(
            self.generators, lambda one: torch.randperm(tokens, generator=one), self.device
        )

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        """Initial noise [B * R, C] and noise of the reverse steps [steps, B * R, C], for `count` tokens per image."""
        first, later = [], []
        for one in self.generators:
            first.append(torch.randn(count, self.channels, generator=one))
            later.append(torch.randn(self.steps, count, self.channels, generator=one))
        return moved(torch.cat(first), self.device), moved(torch.cat(later, dim=1), self.device)


# ---- the network in the loop -----------------------------------------------------------------------
class Drawing:
    """The network with everything that the steps share: keys and values of the prompts, and the position tables.

    `embeddings` [U, P, H] and `mask` [U, P] are the distinct prompts, right-padded; `rows` [G] is the prompt of each
    sequence.
    """

    def __init__(
        self,
        network: Harmon,
        grid: tuple[int, int],
        embeddings: Tensor,
        mask: Tensor,
        rows: Tensor,
    ) -> None:
        network = for_sampling(network)
        self.network, self.grid = network, grid
        mar = network.mar
        self.denoiser = Denoiser(mar.diffloss)
        self.encoder_table = mar.positions(mar.encoder_pos_embed_learned, grid)
        self.blank = mar.blank(grid, known=True)
        self.cache = KeyValueCache()
        # Causal, and padding stands behind what is looked at: no mask is needed here.
        self.prefix = network.hidden(embeddings, cache=self.cache)
        self.cache.select(rows)
        self.mask = mask[rows]
        self.lengths = self.mask.sum(dim=1, keepdim=True)

    @property
    def sequences(self) -> int:
        """Number of sequences, G: B, or 2B with guidance."""
        return len(self.mask)

    def encoded(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encoder output with the language model's context [G, S + V, E], of tokens [B, L, C] visible at [B, V]."""
        seen = self.network.mar.encode(tokens, self.grid, visible, positions=self.encoder_table)
        shared = self.network.to_llm(seen)
        halves = self.sequences // len(seen)
        hidden = self._context(shared.repeat(halves, 1, 1))
        return self.network.with_context(seen.repeat(halves, 1, 1), hidden)

    def conditions(self, tokens: Tensor, visible: Tensor, rows: Tensor | None = None) -> Tensor:
        """The head's conditions [G, R, D] for positions `rows` [B, R], or [G, L, D] for all."""
        encoded = self.encoded(tokens, visible)
        halves = len(encoded) // len(tokens)
        return self.network.mar.decode(
            encoded,
            self.grid,
            visible.repeat(halves, 1),
            blank=self.blank,
            rows=None if rows is None else rows.repeat(halves, 1),
        )

    def _context(self, embeddings: Tensor) -> Tensor:
        """Hidden states [B, L, D] of one image block after the cached prefix."""
        length = embeddings.shape[1]
        ones = self.mask.new_ones(len(embeddings), length)
        hidden = self.network.hidden(
            embeddings,
            mask=torch.cat([self.mask, ones], dim=1),
            positions=self.lengths + torch.arange(length, device=embeddings.device),
            cache=self.cache,
        )
        self.cache.drop(length)  # the next step writes this block anew
        return hidden


@dataclass(frozen=True)
class Step:
    """Result of one step: `tokens` [B, L, C] after it, the sampled `places` [B, R] and their latents [B, R, C].

    `conditions` [G, R, D] are the inputs of the head, `guidance` the scale used.
    """

    tokens: Tensor
    places: Tensor
    drawn: Tensor
    conditions: Tensor
    guidance: float


def sample(
    drawing: Drawing, orders: Tensor, options: SamplerOptions, noise: Noise
) -> Iterator[Step]:
    """Run the loop for images whose tokens are sampled in `orders` [B, L], last entries first.

    The tokens of the last step are the image. Steps to which the schedule assigns no token are skipped.
    """
    batch, count = orders.shape
    channels = drawing.network.mar.diffloss.channels
    tokens = torch.zeros(batch, count, channels, device=orders.device)
    masked = count
    for step in range(options.steps):
        kept = kept_masked(step, options.steps, count, masked)
        left = 0 if step == options.steps - 1 else kept
        if left == masked:
            continue
        scale = options.scale(kept, count)
        done = draw_tokens(drawing, tokens, orders, (masked, left), scale, options, noise)
        yield done
        tokens, masked = done.tokens, left


def draw_tokens(
    drawing: Drawing,
    tokens: Tensor,
    orders: Tensor,
    masked: tuple[int, int],
    scale: float,
    options: SamplerOptions,
    noise: Noise,
) -> Step:
    """One step on tokens [B, L, C]: the first `masked[0]` of each order are hidden before it, `masked[1]` after it."""
    before, left = masked
    _, visible = layouts.places(orders, before)
    chosen = orders[:, left:before].sort(dim=1).values
    conditions = drawing.conditions(tokens, visible, chosen)
    drawn = drawing.denoiser.sample(
        conditions.flatten(0, 1), *noise(chosen.shape[1]), scale, options.temperature
    ).unflatten(0, chosen.shape)
    tokens = tokens.scatter(1, chosen.unsqueeze(-1).expand_as(drawn), drawn)
    return Step(tokens, chosen, drawn, conditions, scale)


# ---- images ----------------------------------------------------------------------------------------
@torch.no_grad()
def sample_latents(
    network: Harmon,
    condition: Condition,
    unconditional: Condition | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Latents [B, m, n, C] of one image per row (harmon.md d4, d5); row i takes its noise from `generators[i]`."""
    options, mar = SamplerOptions.of(sampling), network.config.mar
    guidance = options.guidance if options.guided else None
    check_generation(len(condition), generators, unconditional, guidance)
    noise = RowNoise(generators, mar.sampling_steps, mar.token_channels, network.device)
    drawing = prepare(network, condition, unconditional if options.guided else None)
    *_, last = sample(drawing, noise.orders(network.config.tokens), options, noise)
    demand(finite_rows(last.tokens), "latents")
    return last.tokens.unflatten(1, network.config.grid)


def prepare(network: Harmon, condition: Condition, unconditional: Condition | None) -> Drawing:
    """The network prepared for the loop; distinct text prompts run once, prompts with images always.

    The unconditional half has no image: its prompts are padded to the length of prompts with one.
    """
    parts = [condition] if unconditional is None else [condition, unconditional]
    prefixes: list[tuple[Tensor, Tensor]] = []
    rows: list[int] = []
    for part in parts:
        start = sum(len(mask) for _, mask in prefixes)
        texts, index = distinct(part)
        prefixes.append(embed_prompts(network, texts, condition_image(network, part)))
        rows += [start + at for at in index]
    embeddings, mask = _side_by_side(network, prefixes)
    mask = moved(mask, network.device)
    return Drawing(
        network, network.config.grid, embeddings, mask, torch.tensor(rows, device=network.device)
    )


def _side_by_side(
    network: Harmon, prefixes: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Prefixes of several lengths as one batch: embeddings [B, T, D] and mask [B, T], right-padded."""
    width = max(mask.shape[1] for _, mask in prefixes)
    filler = network.embed(torch.tensor([[network.config.end]], device=network.device))
    padded = []
    for embeddings, mask in prefixes:
        blank = filler.expand(len(mask), width - mask.shape[1], -1)
        padded.append((torch.cat([embeddings, blank], dim=1), F.pad(mask, (0, blank.shape[1]))))
    return torch.cat([one for one, _ in padded]), torch.cat([mask for _, mask in padded])


def distinct(condition: Condition) -> tuple[list[Sequence[int]], list[int]]:
    """The distinct prompts and the index of each row's; with images every row counts as distinct."""
    if condition.has_image:
        return list(condition.texts), list(range(len(condition)))
    seen: dict[tuple[int, ...], int] = {}
    index = [seen.setdefault(tuple(text), len(seen)) for text in condition.texts]
    return [list(text) for text in seen], index


# ---- answers -----------------------------------------------------------------------------------------
def greedy(
    network: Harmon, embeddings: Tensor, mask: Tensor, end: int, max_new_tokens: int
) -> decoding.Steps:
    """Logits [B, V] and their argmax [B], token by token, until every row has produced `end`.

    `embeddings` [B, T, H] and `mask` [B, T] are the questions, right-padded; padding stays hidden. Raises
    NonFinite, after the last token, with the rows whose logits were not finite.
    """
    cache = KeyValueCache()
    hidden = network.hidden(embeddings, mask=mask, positions=layouts.positions(mask), cache=cache)
    position = mask.sum(dim=1, keepdim=True)
    last = hidden.gather(1, (position - 1).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    def advance(token: Tensor) -> Tensor:
        nonlocal mask, position
        mask = torch.cat([mask, torch.ones_like(position)], dim=1)
        last = network.hidden(
            network.embed(token.unsqueeze(1)), mask=mask, positions=position, cache=cache
        )
        position = position + 1
        return network.llm.lm_head(last[:, 0])

    return decoding.greedy(network.llm.lm_head(last[:, 0]), advance, end, max_new_tokens)


@torch.no_grad()
def answer(
    network: Harmon, texts: Sequence[Sequence[int]], latents: Tensor | None, max_new_tokens: int
) -> decoding.Steps:
    """`greedy` for questions as ids, about images with `latents` [B, m, n, C] or without images."""
    image = None if latents is None else read_image(network, latents)
    embeddings, mask = embed_prompts(network, texts, image)
    mask = moved(mask, network.device)
    return greedy(network, embeddings, mask, network.config.end, max_new_tokens)
