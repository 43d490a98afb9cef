"""Janus-Pro's sampler: image codes token by token with guidance, and greedy answers, with a static key-value cache.

Both guidance rows of an image are in one batch, conditional rows first; prompts of different lengths are left-padded.
The codes of image i depend on `generators[i]` alone. Source: docs/reference/janus.md d and g.
Letters: B images, G rows (B, or 2 B with guidance), P prompt length, L columns of the cache, S columns of one pass,
N codes, K codebook size, H heads, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.core.finite import demand, finite_rows
from reca.models.common import decoding, packing
from reca.models.common.batching import moved, row_noise
from reca.models.common.options import check_generation, sampler_options
from reca.models.janus import layout as layouts

if TYPE_CHECKING:
    from reca.models.contract import Sampling
    from reca.models.janus.batch import Condition
    from reca.models.janus.network import Janus

_log = logging.getLogger(__name__)

Choose = Callable[[int, Tensor], Tensor]
"""(step, guided logits [B, K]) -> codes [B]."""


@dataclass(frozen=True)
class SamplerOptions:
    """How the codes of an image are sampled; the defaults are the published ones (janus.md d).

    `guidance` w: logits are u + w (c - u), so 1 means none (0 is read as 1). The published sampler takes the full
    distribution at temperature 1, one code per step, so `Sampling.steps` has no effect.
    """

    guidance: float = 5.0
    temperature: float = 1.0

    @classmethod
    def of(cls, sampling: Sampling) -> SamplerOptions:
        """Convert the contract's `Sampling`; ValueError for an unknown option or invalid value."""
        return sampler_options(cls, sampling)

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is needed."""
        return self.guidance not in (0, 1)


# ---- the language model over a static cache ----------------------------------------------------------
class Decoder:
    """The Llama with keys and values in tensors of their final size, `length` columns.

    `real` [G, P] (bool) is false for the left padding of the prompts. The computation uses the network's own layers, on
    a CPU with weights that are packed once if `many` steps follow; rotary tables and the mask are shared by all layers.
    """

    def __init__(self, network: Janus, real: Tensor, length: int, many: bool = True) -> None:
        llama: Any = network.language_model.model
        self.layers: Sequence[Any] = packing.within_limit(llama.layers) if many else llama.layers
        self.head = packing.packed(network.generation_head) if many else network.generation_head
        self.norm, config = llama.norm, llama.config
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        weight = llama.norm.weight
        rows, prompt = real.shape
        size = config.hidden_size // config.num_attention_heads
        shape = (len(self.layers), rows, self.heads[1], length, size)
        self.keys, self.values = (weight.new_empty(shape) for _ in range(2))
        self.past = 0
        after = torch.arange(1, length - prompt + 1) + layouts.positions(real)[:, -1:]
        places = torch.cat([layouts.positions(real), after], dim=1)
        tables = llama.rotary_emb(weight, moved(places, weight.device))  # [G, L, size] each
        self.cos, self.sin = (table.unsqueeze(1) for table in tables)
        self.real: Tensor | None = None
        if not bool(real.all()):
            real = F.pad(real, (0, length - prompt), value=True)
            self.real = moved(real, weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Final states [G, S, D] of the next columns' input embeddings [G, S, D]."""
        start, self.past = self.past, self.past + x.shape[1]
        table = slice(start, self.past)
        cos, sin = self.cos[:, :, table], self.sin[:, :, table]
        mask = self._mask(start)
        for number, layer in enumerate(self.layers):
            x = x + self._attend(layer, number, x, (cos, sin), start, mask)
            x = x + layer.mlp(_normed(layer.post_attention_layernorm, x))
        return _normed(self.norm, x)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits [G, K] (fp32) of image codes after the last of the states [G, S, D]."""
        return self.head(hidden[:, -1]).float()

    def _attend(
        self,
        layer: Any,
        number: int,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        start: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Output [G, S, D] of one layer's attention from new columns `x` [G, S, D] to all columns so far."""
        own, seen = layer.self_attn, slice(0, self.past)
        normed = _normed(layer.input_layernorm, x)
        query = _rotated(self._split(own.q_proj(normed), 0), *rotary)
        self.keys[number, :, :, start : self.past] = _rotated(
            self._split(own.k_proj(normed), 1), *rotary
        )
        self.values[number, :, :, start : self.past] = self._split(own.v_proj(normed), 1)
        mixed = F.scaled_dot_product_attention(
            query,
            self.keys[number, :, :, seen],
            self.values[number, :, :, seen],
            attn_mask=mask,
            is_causal=mask is None and x.shape[1] > 1,
            enable_gqa=self.heads[0] != self.heads[1],
        )
        return own.o_proj(mixed.transpose(1, 2).flatten(2))

    def _mask(self, start: int) -> Tensor | None:
        """Attention mask [1 or G, 1, S, L] of the new columns; None: full attention, or causal for the first columns.

        Padding attends to itself, so that no softmax is over an empty row.
        """
        single = self.past - start == 1
        seen = None if self.real is None else self.real[:, None, None, : self.past]
        if single or (seen is None and start == 0):
            return seen
        square = torch.ones(self.past, self.past, dtype=torch.bool, device=self.keys.device)
        if seen is None:
            return square.tril()[None, None, start:]
        return ((square.tril() & seen) | square.tril().triu())[:, :, start:]

    def _split(self, x: Tensor, kind: int) -> Tensor:
        """[G, S, H * size] -> [G, H, S, size]; `kind` 0 for queries, 1 for keys and values."""
        return x.unflatten(-1, (self.heads[kind], -1)).transpose(1, 2)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm of [..., D] as a single operation."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary tables [G, 1, S, size] to [G, H, S, size]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


# ---- images ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """One step: `logits` [G, K] of the head, `guided` logits [B, K], and the chosen `codes` [B]."""

    logits: Tensor
    guided: Tensor
    codes: Tensor


def sample(
    network: Janus, prompts: layouts.Prompts, embeddings: Tensor, guidance: float, choose: Choose
) -> Iterator[Step]:
    """Yield the N steps for prompts [G, P] with input embeddings [G, P, D]; rows from B on are unconditional.

    Without unconditional rows, `guidance` must be 1.
    """
    codes, halves = network.config.num_codes, 1 if guidance == 1 else 2
    decoder = Decoder(network, prompts.real, prompts.real.shape[1] + codes - 1)
    logits = decoder.code_logits(decoder(embeddings))
    for step in range(codes):
        guided = with_guidance(logits, guidance, halves)
        chosen = choose(step, guided)
        yield Step(logits, guided, chosen)
        if step < codes - 1:
            logits = next_logits(network, decoder, chosen, halves)


def with_guidance(logits: Tensor, guidance: float, halves: int) -> Tensor:
    """Guided logits u + w (c - u) [B, K] of logits [G, K]; with one half, the logits unchanged."""
    conditional, *others = logits.chunk(halves)
    for unconditional in others:
        return unconditional + guidance * (conditional - unconditional)
    return conditional


def next_logits(network: Janus, decoder: Decoder, codes: Tensor, halves: int) -> Tensor:
    """Logits [G, K] after the codes [B] of a step, which are fed to both halves."""
    fed = network.embed_codes(codes).unsqueeze(1).repeat(halves, 1, 1)
    return decoder.code_logits(decoder(fed))


def multinomial(uniform: Tensor, temperature: float) -> Choose:
    """Sample each step by inverting the cumulative distribution at its column of `uniform` [B, N] (float64)."""

    def choose(step: int, guided: Tensor) -> Tensor:
        mass = (guided / temperature).softmax(dim=-1).double().cumsum(dim=-1)
        level = uniform[:, step, None] * mass[:, -1:]
        return torch.searchsorted(mass, level, right=True).squeeze(1).clamp(max=mass.shape[1] - 1)

    return choose


@torch.no_grad()
def sample_codes(
    network: Janus,
    condition: Condition,
    unconditional: Condition | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Codes [B, N] of one image per row (janus.md d); the noise of row i is from `generators[i]`."""
    options, count = SamplerOptions.of(sampling), network.config.num_codes
    guidance = options.guidance if options.guided else None
    if sampling.steps != count:
        _log.warning(
            "sampling.steps %d has no effect: %d codes take a step each", sampling.steps, count
        )
    check_generation(len(condition), generators, unconditional, guidance)
    uniform = row_noise(
        generators,
        lambda one: torch.rand(count, generator=one, dtype=torch.float64),
        network.device,
    )
    prompts, embeddings = prepare(network, condition, unconditional if options.guided else None)
    choose = multinomial(uniform, options.temperature)
    codes, finite = [], torch.ones_like(uniform[:, 0], dtype=torch.bool)
    for step in sample(network, prompts, embeddings, guidance or 1, choose):
        finite = finite & finite_rows(step.guided)
        codes.append(step.codes)
    demand(finite, "logits of the image codes")
    return torch.stack(codes, dim=1)


def prepare(
    network: Janus, condition: Condition, unconditional: Condition | None
) -> tuple[layouts.Prompts, Tensor]:
    """Prompts of all rows, the conditional ones first, and their input embeddings [G, P, D]."""
    length, rows = network.config.image_length, list(condition.texts)
    if unconditional is not None:
        rows += [layouts.without_condition(row, condition.pad, length) for row in condition.texts]
    prompts = layouts.prompts(rows, length)
    return prompts, network.inputs(prompts.ids, condition.understanding)


# ---- answers -----------------------------------------------------------------------------------------
@torch.no_grad()
def answer(
    network: Janus,
    texts: Sequence[Sequence[int]],
    understanding: Tensor | None,
    end: int,
    max_new_tokens: int,
) -> decoding.Steps:
    """Greedy answers (`decoding.greedy`) to questions as ids, with or without images (SigLIP features [B, P', W])."""
    prompts = layouts.prompts(texts, network.config.image_length)
    decoder = Decoder(network, prompts.real, prompts.real.shape[1] + max_new_tokens, many=False)

    def logits(embeddings: Tensor) -> Tensor:
        return network.language_model.lm_head(decoder(embeddings)[:, -1]).float()

    def advance(token: Tensor) -> Tensor:
        return logits(network.embed(token.unsqueeze(1)))

    first = logits(network.inputs(prompts.ids, understanding))
    return decoding.greedy(first, advance, end, max_new_tokens)
