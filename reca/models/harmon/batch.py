"""Inputs of Harmon's losses and sampler: conditions, noise, conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reca.models.common.batching import count_labels
from reca.models.harmon import layout as layouts

if TYPE_CHECKING:
    from reca.models.harmon.config import HarmonConfig

_SEEDS = 2**62


@dataclass(frozen=True)
class Dropout:
    """The random stream of dropout: its seed is sampled with the noise, so that losses stay pure functions.

    Each block has its own generator, keyed by (`seed`, block), so recomputing a block in the backward pass gives the
    same mask.
    """

    seed: int

    @contextmanager
    def block(self, number: int, device: torch.device) -> Iterator[None]:
        """Context in which operations are seeded by (seed, number); the global generators are restored afterwards."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self.seed + number * 0x9E3779B97F4A7C15) % 2**63)
            yield

    def branch(self, number: int) -> Dropout:
        """Another stream derived from this one: one for each pass through a tower."""
        return Dropout((self.seed ^ ((number + 1) * 0xD1B54A32D192ED03)) % 2**63)


@dataclass(frozen=True)
class Condition:
    """Prompts as ids, one per row; for RecA also the images to reconstruct.

    `latents` [B, m, n, C] are encoded again by the trained encoder; `understanding` [B, L + S, H] was computed once and
    is frozen. `dropped` replaces a prompt whose text is dropped.
    """

    texts: Sequence[Sequence[int]]
    dropped: Sequence[int] = ()
    latents: Tensor | None = None
    understanding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_image(self) -> bool:
        """Whether the condition has an image."""
        return self.latents is not None or self.understanding is not None


@dataclass(frozen=True)
class DiffusionNoise:
    """Noise of a diffusion loss.

    Token `orders` [B, L], of which the first `masked` are hidden; `t` and `gaussian` [repeats * B * L, ...] in
    repeat-major order; `text_dropout` [B]; the seed of MAR's dropout.
    """

    orders: Tensor
    masked: int
    t: Tensor
    gaussian: Tensor
    text_dropout: Tensor
    dropout: Dropout | None = None

    @property
    def count(self) -> int:
        """Number of rows with a loss: masked tokens times repeats."""
        batch, tokens = self.orders.shape
        return batch * self.masked * (len(self.t) // (batch * tokens))


@dataclass(frozen=True)
class Conversation:
    """Tokenised conversations with labels on answers, and the stream of the encoder's dropout."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    dropout: Dropout | None = None

    @property
    def count(self) -> int:
        """Number of tokens with a loss."""
        return count_labels(self.labels)


def sample_noise(config: HarmonConfig, batch: int, generator: torch.Generator) -> DiffusionNoise:
    """Sample, in order: mask rate, orders, timesteps, noise, text dropout, seed of MAR's dropout (harmon.md d1)."""
    tokens, mar = config.tokens, config.mar
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    masked = layouts.masked_count(
        tokens, layouts.mask_rate(uniform, mar.min_mask_rate, mar.mask_spread)
    )
    orders = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    rows = mar.repeats * batch * tokens
    t = torch.randint(1000, (rows,), generator=generator)
    noise = torch.randn(rows, mar.token_channels, generator=generator)
    text_dropout = torch.rand(batch, generator=generator)
    return DiffusionNoise(orders, masked, t, noise, text_dropout, sample_dropout(config, generator))


def sample_dropout(config: HarmonConfig, generator: torch.Generator) -> Dropout | None:
    """The seed of MAR's dropout; None if it has none."""
    if not (config.mar.dropout or config.mar.attention_dropout):
        return None
    return Dropout(int(torch.randint(_SEEDS, (), generator=generator)))
