"""Show-o's masked-image sampler with guidance, its training corruption, and greedy text with a
key/value cache.

The arithmetic of one step is pure in its noise; where the noise comes from (`RowNoise`) and what
the network answers (`CodeLogits`) are handed in. Source: docs/reference/showo.md 4.
Letters: B batch, N image codes, K codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from reca.core.finite import chosen_finite, demand, finite_rows
from reca.models.showo.layout import PAD, Layout

if TYPE_CHECKING:
    from reca.models.contract import Sampling
    from reca.models.showo.network import Showo

_TINY = 1e-20

Logits = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(codes [B, N], masked [B, N]) -> conditional and, with guidance, unconditional logits [B, N, K].
"""

Noise = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(step, masked [B, N]) -> Exponential(1) [B, N, K] and uniform [B, N]."""


# ---- training corruption (showo.md 4.1) --------------------------------------------------------------
def cosine_ratio(t: Tensor) -> Tensor:
    """Share of masked slots at time t in [0, 1]: cos(pi/2 t)."""
    return torch.cos(t * math.pi * 0.5)


def masked_slots(t: Tensor, u: Tensor) -> Tensor:
    """Which slots are masked, bool [B, N], from uniform draws t [B] and u [B, N]; at least one per
    row.

    Slot j is masked where argsort(u)[j] < k: the published rule, which compares argsort values, not
    ranks.
    """
    count = (cosine_ratio(t) * u.shape[1]).round().clamp(min=1)  # half to even
    return u.argsort(dim=1, stable=True) < count.unsqueeze(1)


# ---- options -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SamplerOptions:
    """How the codes of a picture are drawn; the defaults, except `steps` and `guidance`, are the
    published sampler.

    `guidance` w: logits are (1 + w) cond - w uncond. `temperature` divides them.
    `confidence_temperature` scales the noise on confidences; over the steps it shrinks by the
    schedule: `compounding` (a product of 1 - r, as released) or `linear` (1 - r, as MaskGIT
    describes). `order` `random` unmasks in random order instead of by confidence.
    """

    guidance: float = 0.0
    steps: int = 16
    temperature: float = 1.0
    confidence_temperature: float = 1.0
    confidence_schedule: Literal["compounding", "linear"] = "compounding"
    order: Literal["confidence", "random"] = "confidence"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampling.steps is {self.steps}; it must be at least 1")
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance is {self.guidance}; it must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"sampling.temperature is {self.temperature}; it must be positive")
        _choose("confidence_schedule", self.confidence_schedule, ("compounding", "linear"))
        _choose("order", self.order, ("confidence", "random"))

    @classmethod
    def of(cls, sampling: Sampling) -> SamplerOptions:
        """Read the contract's `Sampling`; ValueError on an option in `extra` that Show-o does not
        know.
        """
        extra: dict[str, Any] = dict(sampling.options or {})
        known = {f.name for f in fields(cls)} - {"guidance", "steps", "temperature"}
        if unknown := sorted(set(extra) - known):
            raise ValueError(
                f"sampling.options: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(sampling.guidance, sampling.steps, sampling.temperature, **extra)


def _choose(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"sampling.options.{name} is {value!r}; choose one of: {', '.join(allowed)}"
        )


# ---- one picture (showo.md 4.2) ----------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """What one sampler step did: `codes` [B, N] drawn or kept, and the slots [B, N] that are
    `masked` again; `finite` [B] says where all logits up to here were.
    """

    codes: Tensor
    masked: Tensor
    probabilities: Tensor
    temperature: float
    finite: Tensor


class RowNoise:
    """Noise of the sampler, row i from `generators[i]` alone: a picture does not depend on its
    batch.

    Exponentials are drawn for masked slots only (known ones keep their code), then one uniform per
    slot.
    """

    def __init__(self, generators: Sequence[torch.Generator], codebook_size: int) -> None:
        self.generators = generators
        self.codebook_size = codebook_size

    def __call__(self, step: int, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential(1) [B, N, K] and uniform [B, N] for the next step."""
        batch, slots = masked.shape
        exponential = torch.ones(batch, slots, self.codebook_size)
        uniform = torch.empty(batch, slots)
        for row, generator in enumerate(self.generators):
            wanted = masked[row].cpu()
            drawn = torch.empty(int(wanted.sum()), self.codebook_size)
            exponential[row, wanted] = drawn.exponential_(generator=generator)
            uniform[row].uniform_(generator=generator)
        return exponential.to(masked.device), uniform.to(masked.device)


def guided(conditional: Tensor, unconditional: Tensor | None, guidance: float) -> Tensor:
    """Push logits away from the unconditional ones: (1 + w) cond - w uncond."""
    if unconditional is None:
        return conditional
    return (1 + guidance) * conditional - guidance * unconditional


def draw_codes(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """One code per slot by argmax(p / e), e ~ Exponential(1): a multinomial draw with its noise in
    the open.
    """
    return (probabilities / exponential).argmax(dim=-1)


def remask(chosen: Tensor, masked: Tensor, wanted: int, noise: Tensor) -> Tensor:
    """Mask the least confident slots again: bool [B, N].

    `chosen` [B, N] are confidences (log probabilities) of the drawn codes, `noise` [B, N] is added
    to those that were masked; slots known before stay known. `wanted` is clamped to 1..(masked
    slots - 1).
    """
    confidence = (chosen + noise).masked_fill(~masked, math.inf)
    limit = (masked.sum(dim=1) - 1).clamp(max=wanted).clamp(min=1, max=masked.shape[1] - 1)
    cut_off = confidence.sort(dim=1).values.gather(1, limit.unsqueeze(1))
    return confidence < cut_off


def sample(logits: Logits, masked: Tensor, options: SamplerOptions, noise: Noise) -> Iterator[Step]:
    """Run the sampler from all slots masked (`masked` [B, N] bool, all true); the last step's codes
    are the picture.
    """
    slots = masked.shape[1]
    codes = torch.zeros_like(masked, dtype=torch.long)
    tau = options.confidence_temperature
    finite = torch.ones_like(masked[:, 0])
    for step in range(options.steps):
        ratio = (step + 1) / options.steps
        wanted = math.floor(float(cosine_ratio(torch.tensor(ratio))) * slots)
        tau = _confidence_temperature(options, tau, ratio)
        probabilities = (
            guided(*logits(codes, masked), options.guidance) / options.temperature
        ).softmax(-1)
        exponential, uniform = noise(step, masked)
        codes = torch.where(masked, draw_codes(probabilities, exponential), codes)
        chosen = probabilities.gather(-1, codes.unsqueeze(-1)).squeeze(-1).clamp(min=_TINY).log()
        if options.order == "random":
            masked = remask(torch.zeros_like(chosen), masked, wanted, uniform)
        else:
            masked = remask(chosen, masked, wanted, tau * _gumbel(uniform))
        finite = finite & finite_rows(
            chosen
        )  # softmax makes NaN of a slot with any NaN or infinity
        yield Step(codes, masked, probabilities, tau, finite)


def _confidence_temperature(options: SamplerOptions, before: float, ratio: float) -> float:
    if options.confidence_schedule == "compounding":
        return before * (1 - ratio)
    return options.confidence_temperature * (1 - ratio)


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.clamp(min=_TINY).log()).clamp(min=_TINY).log()


# ---- the network behind the sampler --------------------------------------------------------------
class CodeLogits:
    """Logits of the image codes, with everything in front of the image run once and kept as keys
    and values.

    Nothing in front of the image sees it, so its keys and values are the same in every step.
    `layout` is a drawing layout [B, L] and `embeddings` [B, L, D] its input.
    """

    def __init__(self, network: Showo, layout: Layout, embeddings: Tensor, slots: int) -> None:
        self.network = network
        self.special = network.config.ids
        start, stop = layout.image_columns()
        allowed = layout.allowed()
        self.cache = DynamicCache()
        network.hidden(
            inputs_embeds=embeddings[:, :start],
            allowed=allowed[:, :start, :start],
            position_ids=layout.positions[:, :start],
            past_key_values=self.cache,
        )
        self.allowed = allowed[:, start:stop, :stop]
        self.positions = layout.positions[:, start:stop]
        self.block = embeddings[:, start:stop].clone()
        first = (stop - start - slots) // 2  # 1 where soi and eoi belong to the block, else 0
        self.slots = slice(first, first + slots)

    def __call__(self, codes: Tensor, masked: Tensor) -> Tensor:
        """Logits [B, N, K] (fp32) of all slots, given the `codes` of those not `masked`."""
        ids = torch.where(masked, self.special.mask, codes + self.special.first_image)
        self.block[:, self.slots] = self.network.embed(ids).to(self.block.dtype)
        hidden = self.network.hidden(
            inputs_embeds=self.block,
            allowed=self.allowed,
            position_ids=self.positions,
            past_key_values=self.cache,
        )
        self.cache.crop(-self.block.shape[1])  # the next step writes this block anew
        return self.network.head(hidden[:, self.slots], self.special.codes).float()


def greedy(
    network: Showo, layout: Layout, embeddings: Tensor, max_new_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Next-token logits [B, V] and their argmax [B], token by token, until every row has said eos.

    `layout` ends where the answers begin (`layout.question`). Old rows never see new columns, so
    their keys are kept. NonFinite, behind the last token, names rows whose logits were not finite.
    """
    cache = DynamicCache()
    hidden = network.hidden(
        inputs_embeds=embeddings,
        allowed=layout.allowed(),
        position_ids=layout.positions,
        past_key_values=cache,
    )
    visible = (layout.roles != PAD).unsqueeze(1)  # [B, 1, keys]
    position = layout.positions[:, -1:]
    finished = torch.zeros_like(layout.ids[:, 0], dtype=torch.bool)
    finite = torch.ones_like(finished)
    for _ in range(max_new_tokens):
        logits = network.head(hidden[:, -1]).float()
        token = logits.argmax(dim=-1)
        finite = finite & (finished | chosen_finite(logits, token))
        yield logits, token
        finished = finished | (token == network.config.ids.eos)
        if bool(finished.all()):
            break
        position = position + 1
        visible = torch.cat([visible, torch.ones_like(visible[..., :1])], dim=-1)
        hidden = network.hidden(
            inputs_embeds=network.embed(token.unsqueeze(1)),
            allowed=visible,
            position_ids=position,
            past_key_values=cache,
        )
    demand(finite, "logits of the answers")
