"""Show-o's masked-image sampler with guidance, and greedy text with a KV cache.

A step is a pure function of its noise; the noise (`RowNoise`) and the network's logits
(`CodeLogits`) are passed in. Source: docs/reference/showo.md 4.
Letters: B batch, N image codes, K codebook.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from reca.core.finite import demand, finite_rows
from reca.models.common import decoding, packing
from reca.models.common.attention import KeyValueCache
from reca.models.common.batching import moved
from reca.models.common.options import check_generation, sampler_options
from reca.models.showo import layout as layouts
from reca.models.showo.batch import Condition, cosine_ratio
from reca.models.showo.layout import IGNORE, PAD, Layout

if TYPE_CHECKING:
    from reca.models.contract import Sampling
    from reca.models.showo.config import ShowoConfig, ShowoOptions
    from reca.models.showo.network import Showo

_TINY = 1e-20
_log = logging.getLogger(__name__)

Logits = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(codes [B, N], masked [B, N]) -> conditional and, with guidance, unconditional logits [B, N, K].
"""

Noise = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(step, masked [B, N]) -> Exponential(1) [B, N, K] and uniform [B, N]."""


# ---- options -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SamplerOptions:
    """Sampling options; the defaults, except `steps` and `guidance`, are those of the published sampler.

    `guidance` w: logits are (1 + w) cond - w uncond. `temperature` divides them.
    `confidence_temperature` scales the noise on confidences; it decreases over the steps by
    `confidence_schedule`: `compounding` (a product of 1 - r, as released) or `linear` (1 - r, as MaskGIT
    describes). `order` `random` unmasks in random order instead of by confidence.
    """

    guidance: float = 0.0
    steps: int = 16
    temperature: float = 1.0
    confidence_temperature: float = 1.0
    confidence_schedule: Literal["compounding", "linear"] = "compounding"
    order: Literal["confidence", "random"] = "confidence"

    @classmethod
    def of(cls, sampling: Sampling) -> SamplerOptions:
        """Convert the contract's `Sampling`; ValueError for an option that Show-o does not have."""
        return sampler_options(cls, sampling)


# ---- one image (showo.md 4.2) ------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """Result of one sampler step: `codes` [B, N], sampled or kept, and the slots [B, N] that are
    `masked` again; `finite` [B]: all logits so far were finite.
    """

    codes: Tensor
    masked: Tensor
    probabilities: Tensor
    temperature: float
    finite: Tensor


class RowNoise:
    """Noise of the sampler; row i uses `generators[i]` only, so an image does not depend on its batch.

    Exponentials are sampled for masked slots only (known ones keep their code), then one uniform
    per slot.
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
            unknown = masked[row].cpu()
            sample = torch.empty(int(unknown.sum()), self.codebook_size)
            exponential[row, unknown] = sample.exponential_(generator=generator)
            uniform[row].uniform_(generator=generator)
        return moved(exponential, masked.device), moved(uniform, masked.device)


def guided(conditional: Tensor, unconditional: Tensor | None, guidance: float) -> Tensor:
    """Classifier-free guidance of logits [B, N, V]: (1 + w) cond - w uncond."""
    if unconditional is None:
        return conditional
    return (1 + guidance) * conditional - guidance * unconditional


def draw_codes(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """Codes [B, N] by argmax(p / e) over V, e ~ Exponential(1): a multinomial sample with explicit noise."""
    return (probabilities / exponential).argmax(dim=-1)


def remask(chosen: Tensor, masked: Tensor, remaining: int, noise: Tensor) -> Tensor:
    """Remask the least confident slots: bool [B, N].

    `chosen` [B, N] are confidences (log probabilities) of the sampled codes, `noise` [B, N] is added
    to those that were masked; known slots stay known. `remaining` is clamped to 1..(masked slots - 1).
    """
    confidence = (chosen + noise).masked_fill(~masked, math.inf)
    limit = (masked.sum(dim=1) - 1).clamp(max=remaining).clamp(min=1, max=masked.shape[1] - 1)
    threshold = confidence.sort(dim=1).values.gather(1, limit.unsqueeze(1))
    return confidence < threshold


def sample(logits: Logits, masked: Tensor, options: SamplerOptions, noise: Noise) -> Iterator[Step]:
    """Run the sampler from all slots masked (`masked` [B, N] bool, all true); the last step's codes are the image."""
    slots = masked.shape[1]
    codes = torch.zeros_like(masked, dtype=torch.long)
    tau = options.confidence_temperature
    finite = torch.ones_like(masked[:, 0])
    for step in range(options.steps):
        ratio = (step + 1) / options.steps
        remaining = math.floor(float(cosine_ratio(torch.tensor(ratio))) * slots)
        tau = _confidence_temperature(options, tau, ratio)
        probabilities = (
            guided(*logits(codes, masked), options.guidance) / options.temperature
        ).softmax(-1)
        exponential, uniform = noise(step, masked)
        codes = torch.where(masked, draw_codes(probabilities, exponential), codes)
        chosen = probabilities.gather(-1, codes.unsqueeze(-1)).squeeze(-1).clamp(min=_TINY).log()
        if options.order == "random":
            masked = remask(torch.zeros_like(chosen), masked, remaining, uniform)
        else:
            masked = remask(chosen, masked, remaining, tau * _gumbel(uniform))
        finite = finite & finite_rows(
            chosen
        )  # softmax gives NaN for a slot with any NaN or infinity
        yield Step(codes, masked, probabilities, tau, finite)


def _confidence_temperature(options: SamplerOptions, before: float, ratio: float) -> float:
    if options.confidence_schedule == "compounding":
        return before * (1 - ratio)
    return options.confidence_temperature * (1 - ratio)


def _gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of uniform noise, elementwise [B, N]."""
    return -(-uniform.clamp(min=_TINY).log()).clamp(min=_TINY).log()


# ---- the network in the sampler ------------------------------------------------------------------
class CodeLogits:
    """Logits of the image codes; everything before the image runs once, and its keys and values are cached.

    Nothing before the image attends to it, so these keys and values are the same in every step.
    `layout` is a generation layout [B, L] and `embeddings` [B, L, D] its input.
    """

    def __init__(self, network: Showo, layout: Layout, embeddings: Tensor, slots: int) -> None:
        self.network = network
        self.special = network.config.ids
        start, stop = layout.image_columns()
        allowed = layout.allowed()
        self.cache = KeyValueCache()
        network.hidden(
            inputs_embeds=embeddings[:, :start],
            allowed=allowed[:, :start, :start],
            position_ids=layout.positions[:, :start],
            cache=self.cache,
        )
        self.allowed = allowed[:, start:stop, :stop]
        self.positions = layout.positions[:, start:stop]
        self.block = embeddings[:, start:stop].clone()
        first = (stop - start - slots) // 2  # 1 if soi and eoi belong to the block, else 0
        self.slots = slice(first, first + slots)

    def __call__(self, codes: Tensor, masked: Tensor) -> Tensor:
        """Logits [B, N, K] (fp32) of all slots, given the `codes` of those not `masked`."""
        ids = torch.where(masked, self.special.mask, codes + self.special.first_image)
        self.block[:, self.slots] = self.network.embed(ids).to(self.block.dtype)
        hidden = self.network.hidden(
            inputs_embeds=self.block,
            allowed=self.allowed,
            position_ids=self.positions,
            cache=self.cache,
        )
        self.cache.drop(self.block.shape[1])  # the next step writes this block anew
        return self.network.head(hidden[:, self.slots], self.special.codes).float()


@torch.no_grad()
def sample_codes(
    network: Showo,
    options: ShowoOptions,
    condition: Condition,
    unconditional: Condition | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Codes [B, N] of one image per row (showo.md 4.2); row i takes its noise from `generators[i]`."""
    chosen = SamplerOptions.of(sampling)
    guidance = chosen.guidance if chosen.guidance > 0 else None
    check_generation(len(condition), generators, unconditional, guidance)
    unconditional = unconditional if chosen.guidance > 0 else None
    shape = (len(condition), network.config.num_vq_tokens)
    masked = torch.ones(shape, dtype=torch.bool, device=network.device)
    noise = RowNoise(generators, network.config.codebook_size)
    logits = code_logits(network, options, condition, unconditional)
    *_, last = sample(logits, masked, chosen, noise)
    demand(last.finite, "logits of the image codes")
    return last.codes


def code_logits(
    network: Showo,
    options: ShowoOptions,
    condition: Condition,
    unconditional: Condition | None,
) -> Logits:
    """The network prepared for the sampler; both conditions run in one pass if their layouts match."""
    network = for_sampling(network)
    if unconditional is None:
        single = _one_pass(network, options, condition)
        return lambda codes, masked: (single(codes, masked), None)
    if condition.understanding is None and unconditional.understanding is None:
        both = _one_pass(network, options, Condition([*condition.texts, *unconditional.texts]))

        def joint(codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
            conditional, other = both(codes.repeat(2, 1), masked.repeat(2, 1)).chunk(2)
            return conditional, other

        return joint
    first, second = (
        _one_pass(network, options, condition),
        _one_pass(network, options, unconditional),
    )
    return lambda codes, masked: (first(codes, masked), second(codes, masked))


def for_sampling(network: Showo) -> Showo:
    """A copy whose large layers are packed if the device benefits from it; everything else is shared."""
    layers = packing.within_limit(list(network.showo.model.layers))
    copied = packing.exchanged(network, "showo.model.layers", nn.ModuleList(layers))
    return cast("Showo", copied)


def _one_pass(network: Showo, options: ShowoOptions, condition: Condition) -> CodeLogits:
    config = network.config
    room, longest = config.max_text, max(len(text) for text in condition.texts)
    if condition.understanding is None and longest > room:
        _log.warning("a prompt of %d tokens is truncated to %d", longest, room)
    image = torch.full((len(condition), config.num_vq_tokens), config.ids.mask)
    targets = torch.full_like(image, IGNORE)
    layout = layouts.generation(config, options, condition, image, targets, room)
    layout = layout.prepared(options.trim, network.device)
    embeddings = network.inputs(layout.ids, condition.understanding, layout.clip_at)
    return CodeLogits(network, layout, embeddings, config.num_vq_tokens)


# ---- answers ---------------------------------------------------------------------------------
@torch.no_grad()
def answer(
    network: Showo,
    options: ShowoOptions,
    texts: Sequence[Sequence[int]],
    understanding: Tensor | None,
    system: Sequence[int],
    max_new_tokens: int,
) -> decoding.Steps:
    """`greedy` for questions as ids, about images with `understanding` features [B, P, D] or without images."""
    layout = question_layout(network.config, texts, understanding, system)
    layout = layout.prepared(options.trim, network.device)
    return greedy(
        network, layout, network.inputs(layout.ids, understanding, layout.clip_at), max_new_tokens
    )


def question_layout(
    config: ShowoConfig,
    texts: Sequence[Sequence[int]],
    understanding: Tensor | None,
    system: Sequence[int] = (),
) -> Layout:
    """The sequences [B, L] that precede an answer."""
    prefix = layouts.reading_prefix(config, len(texts), understanding, system)
    return layouts.question(prefix, texts, config.ids)


def greedy(
    network: Showo, layout: Layout, embeddings: Tensor, max_new_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Next-token logits [B, V] and their argmax [B], token by token, until every row has produced eos.

    `layout` ends where the answers start (`layout.question`). Earlier rows never see new columns, so
    their keys are cached. Raises NonFinite, after the last token, with the rows whose logits were
    not finite.
    """
    cache = KeyValueCache()
    hidden = network.hidden(
        inputs_embeds=embeddings,
        allowed=layout.allowed(),
        position_ids=layout.positions,
        cache=cache,
    )
    visible = (layout.roles != PAD).unsqueeze(1)  # [B, 1, keys]
    position = layout.positions[:, -1:]

    def advance(token: Tensor) -> Tensor:
        nonlocal visible, position
        position = position + 1
        visible = torch.cat([visible, torch.ones_like(visible[..., :1])], dim=-1)
        hidden = network.hidden(
            inputs_embeds=network.embed(token.unsqueeze(1)),
            allowed=visible,
            position_ids=position,
            cache=cache,
        )
        return network.head(hidden[:, -1]).float()

    first = network.head(hidden[:, -1]).float()
    return decoding.greedy(first, advance, network.config.ids.eos, max_new_tokens)
