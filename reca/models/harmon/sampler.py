"""Harmon's sampler: a MaskGIT-style loop whose tokens are drawn by reverse diffusion, and greedy answers.

What stays the same over the steps is made once: keys and values of each distinct prompt, position tables, the
schedule. Both halves of guidance share the encoder. Source: docs/reference/harmon.md d3, d4 and g.
Letters: B pictures, G sequences (B, or 2B with guidance), L latents of a picture, V visible ones, S buffers,
R tokens drawn in a step, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from reca.core.finite import chosen_finite, demand
from reca.models.harmon import layout as layouts
from reca.models.harmon.denoiser import Denoiser
from reca.models.harmon.network import Harmon, for_sampling

if TYPE_CHECKING:
    from reca.models.contract import Sampling

Noise = Callable[[int], tuple[Tensor, Tensor]]
"""Tokens R per picture -> initial noise [B * R, C] and noise of the reverse steps [steps, B * R, C]."""


@dataclass(frozen=True)
class SamplerOptions:
    """How a picture is drawn; the defaults are the published script's.

    `guidance` s: noise is u + s (c - u), so 1 means none (0 is read as 1). `schedule` `linear` raises it from 1 to
    s over the steps. `temperature` scales the noise of the reverse process, not its start. Numbers that no sampler can
    use are refused by the contract's `Sampling`.
    """

    guidance: float = 3.0
    steps: int = 64
    temperature: float = 1.0
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear"):
            raise ValueError(
                f"sampling.options.schedule is {self.schedule!r}; choose constant or linear"
            )

    @classmethod
    def of(cls, sampling: Sampling) -> SamplerOptions:
        """Read the contract's `Sampling`; ValueError on an option in `extra` that Harmon does not know."""
        extra: dict[str, Any] = dict(sampling.options or {})
        known = {f.name for f in fields(cls)} - {"guidance", "steps", "temperature"}
        if unknown := sorted(set(extra) - known):
            raise ValueError(
                f"sampling.options: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(sampling.guidance, sampling.steps, sampling.temperature, **extra)

    @property
    def guided(self) -> bool:
        """Whether an unconditional half is needed."""
        return self.guidance not in (0, 1)

    def scale(self, kept: int, tokens: int) -> float:
        """Guidance of a step after which `kept` of `tokens` stay masked."""
        if not self.guided:
            return 1.0
        if self.schedule == "constant":
            return self.guidance
        return 1 + (self.guidance - 1) * (tokens - kept) / tokens


def kept_masked(step: int, steps: int, tokens: int, masked: int) -> int:
    """How many tokens the cosine schedule leaves masked after 0-based `step`; integers throughout (harmon.md d4)."""
    wanted = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
    return max(1, min(masked - 1, wanted))


class RowNoise:
    """Noise of the sampler, picture i from `generators[i]` alone: it does not depend on its batch."""

    def __init__(
        self, generators: Sequence[torch.Generator], steps: int, channels: int, device: torch.device
    ) -> None:
        self.generators, self.steps, self.channels = generators, steps, channels
        self.device = device

    def orders(self, tokens: int) -> Tensor:
        """One random order of the tokens per picture [B, L]; drawn first."""
        rows = [torch.randperm(tokens, generator=one) for one in self.generators]
        return torch.stack(rows).to(self.device)

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        """Initial noise [B * R, C] and that of the reverse steps [steps, B * R, C] of `count` tokens each."""
        first, later = [], []
        for one in self.generators:
            first.append(torch.randn(count, self.channels, generator=one))
            later.append(torch.randn(self.steps, count, self.channels, generator=one))
        return torch.cat(first).to(self.device), torch.cat(later, dim=1).to(self.device)


# ---- the network behind the loop -------------------------------------------------------------------
class Drawing:
    """The network with all that the steps share: keys and values of the prompts, and the position tables.

    `embeddings` [U, P, H] and `mask` [U, P] are the distinct prompts, padded right; `rows` [G] says which one
    each sequence has.
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
        self.cache = DynamicCache()
        # Causal, and padding stands behind what is looked at: no mask is needed here.
        self.prefix = network.hidden(embeddings, cache=self.cache)
        self.cache.batch_select_indices(rows)
        self.mask = mask[rows]
        self.lengths = self.mask.sum(dim=1, keepdim=True)

    @property
    def sequences(self) -> int:
        """G: B, or 2B with guidance."""
        return len(self.mask)

    def encoded(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encoder output with the language model's context [G, S + V, E], of tokens [B, L, C] seen at [B, V]."""
        seen = self.network.mar.encode(tokens, self.grid, visible, positions=self.encoder_table)
        shared = self.network.to_llm(seen)
        halves = self.sequences // len(seen)
        hidden = self._context(shared.repeat(halves, 1, 1))
        return self.network.with_context(seen.repeat(halves, 1, 1), hidden)

    def conditions(self, tokens: Tensor, visible: Tensor, rows: Tensor | None = None) -> Tensor:
        """The head's conditions [G, R, D] for the places `rows` [B, R], or [G, L, D] for all."""
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
        length = embeddings.shape[1]
        ones = self.mask.new_ones(len(embeddings), length)
        hidden = self.network.hidden(
            embeddings,
            mask=torch.cat([self.mask, ones], dim=1),
            positions=self.lengths + torch.arange(length, device=embeddings.device),
            cache=self.cache,
        )
        self.cache.crop(-length)  # the next step writes this block anew
        return hidden


@dataclass(frozen=True)
class Step:
    """What one step did: `tokens` [B, L, C] after it, the `places` [B, R] it drew and their latents [B, R, C].

    `conditions` [G, R, D] are what the head saw, `guidance` what it was guided by.
    """

    tokens: Tensor
    places: Tensor
    drawn: Tensor
    conditions: Tensor
    guidance: float


def sample(
    drawing: Drawing, orders: Tensor, options: SamplerOptions, noise: Noise
) -> Iterator[Step]:
    """Run the loop for pictures whose tokens are drawn in `orders` [B, L], last entries first.

    The last step's tokens are the picture. A step to which the schedule leaves nothing is passed over.
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
    """One step: of the tokens [B, L, C] the first `masked[0]` of each order are hidden before, `masked[1]` behind."""
    before, left = masked
    _, visible = layouts.places(orders, before)
    chosen = orders[:, left:before].sort(dim=1).values
    conditions = drawing.conditions(tokens, visible, chosen)
    drawn = drawing.denoiser.sample(
        conditions.flatten(0, 1), *noise(chosen.shape[1]), scale, options.temperature
    ).unflatten(0, chosen.shape)
    tokens = tokens.scatter(1, chosen.unsqueeze(-1).expand_as(drawn), drawn)
    return Step(tokens, chosen, drawn, conditions, scale)


# ---- answers -----------------------------------------------------------------------------------------
def greedy(
    network: Harmon, embeddings: Tensor, mask: Tensor, end: int, max_new_tokens: int
) -> Iterator[Tensor]:
    """Most likely next ids [B], token by token, until every row has said `end`.

    `embeddings` [B, T, H] and `mask` [B, T] are the questions, padded right; padding stays hidden. NonFinite, behind
    the last token, names rows whose logits were not finite.
    """
    cache = DynamicCache()
    hidden = network.hidden(embeddings, mask=mask, positions=layouts.positions(mask), cache=cache)
    position = mask.sum(dim=1, keepdim=True)
    last = hidden.gather(1, (position - 1).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    finished = torch.zeros_like(position[:, 0], dtype=torch.bool)
    finite = torch.ones_like(finished)
    for _ in range(max_new_tokens):
        logits = network.llm.lm_head(last[:, 0])
        token = logits.argmax(dim=-1)
        finite = finite & (finished | chosen_finite(logits, token))
        yield token
        finished = finished | (token == end)
        if bool(finished.all()):
            break
        mask = torch.cat([mask, torch.ones_like(position)], dim=1)
        last = network.hidden(
            network.embed(token.unsqueeze(1)), mask=mask, positions=position, cache=cache
        )
        position = position + 1
    demand(finite, "logits of the answers")
