"""Harmon's trainable network under its released names: Qwen2.5 (`llm`), the masked autoencoder (`mar`), projectors.

The encoder of the masked autoencoder is shared: it encodes an input image (nothing masked) and the visible tokens
of a generated one. Source: docs/reference/harmon.md a, c, d1 and f. Letters: B batch, L latents of an
image, V visible ones, S buffers, E and D widths of encoder and decoder, H width of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reca_kernels import Implementation
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.common import packing
from reca.models.common.attention import KeyValueCache
from reca.models.common.batching import moved
from reca.models.harmon import layout as layouts
from reca.models.harmon.batch import Condition, Dropout
from reca.models.harmon.config import HarmonConfig, MarConfig
from reca.models.harmon.diffusion import DiffusionHead
from reca.models.harmon.qwen2 import Qwen2ForCausalLM


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, rates: tuple[float, float]) -> None:
        super().__init__()
        self.heads, self.rates = heads, rates
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rows: Tensor | None, dropping: bool, qkv: Tensor | None = None
    ) -> Tensor:
        """Attention over x [B, L, D]; queries only at `rows` [B, K] if given, precomputed `qkv` [B, L, 3D] if given."""
        attended, projected = self.rates if dropping else (0.0, 0.0)
        if rows is not None and not dropping and rows.shape[1] * self.heads < x.shape[-1]:
            return self.proj(self._attend_few_queries(x, rows))
        q, k, v = (self.qkv(x) if qkv is None else qkv).chunk(3, dim=-1)
        q = q if rows is None else _places(q, rows)
        q, k, v = self._split(q), self._split(k), self._split(v)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=attended)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), projected)

    def _attend_few_queries(self, x: Tensor, rows: Tensor) -> Tensor:
        """Attention of positions `rows` [B, R] to all of x [B, N, W], without computing keys or values.

        With few queries it is cheaper to multiply them with the key weights, average x itself, and apply the value
        weights to the averages. A key bias shifts all scores of a query equally and has no effect.
        """
        query, key, value = self.qkv.weight.chunk(3)
        query_bias, _, value_bias = self.qkv.bias.chunk(3)
        q = self._split(F.linear(_places(x, rows), query, query_bias))  # [B, heads, R, head]
        key, value = (part.unflatten(0, (self.heads, -1)) for part in (key, value))
        back = (q * q.shape[-1] ** -0.5 @ key).flatten(1, 2)  # [B, heads R, W]
        shares = (back @ x.transpose(1, 2)).softmax(dim=-1)
        mixed = (shares @ x).unflatten(1, (self.heads, -1)) @ value.transpose(1, 2)
        return mixed.transpose(1, 2).flatten(2) + value_bias

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, width: int, ratio: float, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor, dropping: bool) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        rate = self.rate if dropping else 0.0
        return F.dropout(self.fc2(F.dropout(packing.gelu(self.fc1, x), rate)), rate)


class Block(nn.Module):
    """Pre-norm transformer block with bidirectional attention; dropout if its stream is given."""

    def __init__(self, width: int, heads: int, config: MarConfig) -> None:
        super().__init__()
        rates = (config.attention_dropout, config.dropout)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, rates)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, config.mlp_ratio, config.dropout)

    def forward(
        self,
        x: Tensor,
        rows: Tensor | None = None,
        dropout: Dropout | None = None,
        number: int = 0,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """[B, N, W] -> [B, N, W]; with `rows` [B, R] only these positions of the result, [B, R, W].

        `qkv` [B, N, 3W] are the queries, keys and values of x, if precomputed.
        """
        if dropout is None:
            return self._run(x, rows, False, qkv)
        with dropout.block(number, x.device):
            return self._run(x, rows, True, qkv)

    def questions(self, x: Tensor) -> Tensor:
        """Queries, keys and values [..., 3W] of x [..., W]."""
        return self.attn.qkv(self.norm1(x))

    def _run(self, x: Tensor, rows: Tensor | None, dropping: bool, qkv: Tensor | None) -> Tensor:
        """The residual block on `x` [B, L, D]; only the tokens `rows` [B, K] if given."""
        kept = x if rows is None else _places(x, rows)
        asking = self.norm1(x) if qkv is None else x
        kept = kept + self.attn(asking, rows, dropping, qkv)
        return kept + self.mlp(self.norm2(kept), dropping)


def _places(x: Tensor, rows: Tensor) -> Tensor:
    """Positions `rows` [B, R] of x [B, N, W]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Mar(nn.Module):
    """The masked autoencoder under its released names; buffers come first in every sequence here."""

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder, cells = config.encoder_width, config.decoder_width, config.table**2
        # Not used by Harmon, but part of released checkpoints.
        self.class_emb = nn.Embedding(config.classes, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.encoder_pos_embed_learned = nn.Parameter(
            torch.zeros(1, config.buffers + cells, encoder)
        )
        self.decoder_pos_embed_learned = nn.Parameter(
            torch.zeros(1, config.buffers + cells, decoder)
        )
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, cells, decoder))
        self.z_proj = nn.Linear(config.token_channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=1e-6)
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, config.encoder_heads, config) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder, config.decoder_heads, config) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.diffloss = DiffusionHead(
            config.token_channels,
            decoder,
            config.head_width,
            config.head_depth,
            config.sampling_steps,
            config.noise_schedule,
        )
        self._initialise()

    def _initialise(self) -> None:
        """MAR's initialisation: normal tables and tokens, and a head that starts at zero modulation."""
        for name, table in self.named_parameters():
            if name.endswith(("_learned", "mask_token", "fake_latent")):
                nn.init.normal_(table, std=self.config.initializer_range)
        for part in self.diffloss.net.modulated:
            nn.init.zeros_(part.modulator.weight)
            nn.init.zeros_(part.modulator.bias)
        nn.init.zeros_(self.diffloss.net.final_layer.linear.weight)
        nn.init.zeros_(self.diffloss.net.final_layer.linear.bias)

    # ---- position tables ------------------------------------------------------------------------
    def positions(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """A learned table [1, (S +) cells, W] for a grid: its square part resized bilinearly in fp32, buffers as is."""
        side = self.config.table
        buffers, cells = table[:, : table.shape[1] - side**2], table[:, -(side**2) :]
        if grid != (side, side):
            square = cells.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
            sized = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
            cells = sized.flatten(2).transpose(1, 2).to(table.dtype)
        return torch.cat([buffers, cells], dim=1)

    # ---- towers ---------------------------------------------------------------------------------
    def encode(
        self,
        latents: Tensor,
        grid: tuple[int, int],
        visible: Tensor | None = None,
        dropout: Dropout | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Latents [B, L, C] -> [B, S + V, E]; `visible` [B, V]: visible positions in raster order (default: all).

        `positions`: the encoder's table for this grid, if precomputed.
        """
        if positions is None:
            positions = self.positions(self.encoder_pos_embed_learned, grid)
        tokens, buffers = latents.to(self.z_proj.weight.dtype), self.config.buffers
        places = positions[:, buffers:].expand(len(tokens), -1, -1)
        if (
            visible is not None
        ):  # position rows are gathered with their tokens, so hidden tokens are never projected
            tokens, places = _places(tokens, visible), _places(places, visible)
        lead = (self.fake_latent + positions[:, :buffers]).expand(len(tokens), -1, -1)
        x = self.z_proj_ln(torch.cat([lead, self.z_proj(tokens) + places], dim=1))
        for number, block in enumerate(self.encoder_blocks):
            x = block(x, None, dropout, number)
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: Tensor,
        grid: tuple[int, int],
        visible: Tensor,
        dropout: Dropout | None = None,
        blank: Blank | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Encoded buffers and visible tokens [B, S + V, E] -> conditions z of the head, [B, L, D].

        With `rows` [B, R] only for these positions, [B, R, D]. `blank`: of this grid, if precomputed.
        """
        blank = self.blank(grid) if blank is None else blank
        buffers, last = self.config.buffers, len(self.decoder_blocks) - 1
        lead = torch.arange(buffers, device=visible.device).expand(len(visible), -1)
        places = torch.cat([lead, visible + buffers], dim=1)
        seen = self.decoder_embed(encoded) + _places(
            blank.table.expand(len(places), -1, -1), places
        )
        x = _put(blank.tokens, places, seen)
        rows_after_buffers = None if rows is None else rows + buffers
        block: Any
        for number, block in enumerate(self.decoder_blocks):
            selected = rows_after_buffers if number == last else None
            known = None if number or number == last else blank.qkv
            qkv = None if known is None else _put(known, places, block.questions(seen))
            x = block(x, selected, dropout, number, qkv)
        x = self.decoder_norm(x)
        if rows is None:
            return x[:, buffers:] + blank.head_table
        return x + _places(blank.head_table.expand(len(x), -1, -1), rows)

    def blank(self, grid: tuple[int, int], known: bool = False) -> Blank:
        """The decoder's input for a fully masked image; `known` adds the first block's queries, keys and values."""
        table = self.positions(self.decoder_pos_embed_learned, grid)
        tokens = self.mask_token + table
        first: Any = self.decoder_blocks[0]
        qkv = first.questions(tokens) if known else None
        head_table = self.positions(self.diffusion_pos_embed_learned, grid)
        return Blank(table, tokens, head_table, qkv)


@dataclass(frozen=True)
class Blank:
    """The decoder's tables for a grid: its own [1, S + L, D], the head's [1, L, D], and masked `tokens` [1, S + L, D].

    `qkv` [1, S + L, 3D]: the masked tokens' queries, keys and values in the first block, the same in every step.
    """

    table: Tensor
    tokens: Tensor
    head_table: Tensor
    qkv: Tensor | None


def _put(blank: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    """The blank [1, N, W] repeated for every row, with positions [B, V] replaced by `seen` [B, V, W]."""
    index = places.unsqueeze(-1).expand(-1, -1, seen.shape[-1])
    return blank.to(seen.dtype).expand(len(seen), -1, -1).scatter(1, index, seen)


class Harmon(nn.Module):
    """Everything in a Harmon checkpoint except the VAE: `llm.*`, `mar.*`, `proj_in.*`, `proj_out.*`."""

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Qwen2ForCausalLM(config.language)
        self.mar = Mar(config.mar)
        width = config.llm_value("hidden_size")
        self.proj_in = _projector(config.mar.encoder_width, width)
        self.proj_out = _projector(width, config.mar.encoder_width, inner=width)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mar.fake_latent.device

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [B, T, H] of ids [B, T]; image placeholders (negative) become id 0."""
        return self.llm.model.embed_tokens(ids.clamp(min=0))

    def understand(
        self, latents: Tensor, grid: tuple[int, int], dropout: Dropout | None = None
    ) -> Tensor:
        """h_v [B, L + S, H]: the encoder's output as input of the language model, buffers last (harmon.md c)."""
        return self.to_llm(self.mar.encode(latents, grid, dropout=dropout))

    def to_llm(self, encoded: Tensor) -> Tensor:
        """Encoder output [B, S + V, E] as language model inputs [B, V + S, H]: buffers move to the end."""
        return _rolled(self.proj_in(encoded), self.config.mar.buffers)

    def with_context(self, encoded: Tensor, hidden: Tensor) -> Tensor:
        """Add the language model's hidden states of image tokens [B, V + S, H] to the encoder output."""
        return encoded + _rolled(self.proj_out(hidden), hidden.shape[1] - self.config.mar.buffers)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        unpadded: Implementation | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, H] of input embeddings; causal, `mask` [B, past + T] hides keys with 0.

        `positions` [B, T] default to those that follow the cache, which is extended in place. `unpadded`: tokens that
        the mask hides are left out, by the named implementation of attention, and their states are 0; without a cache,
        and with a mask on the host.
        """
        places = None if positions is None else moved(positions, self.device)
        if unpadded is not None and mask is not None and not bool(mask.all()):
            assert cache is None, "padding is part of a cache"
            return self.llm.model.without_padding(embeddings, places, mask, unpadded)
        return self.llm.model(embeddings, places, mask, cache)


def read_image(
    network: Harmon, latents: Tensor, gradient: float = 1.0, dropout: Dropout | None = None
) -> Tensor:
    """Understanding embeddings [B, L + S, H] of latents [B, m, n, C]; their gradient times `gradient` (harmon.md e)."""
    tokens = moved(latents, network.device).float().flatten(1, 2)
    read = network.understand(tokens, network.config.grid, dropout and dropout.branch(0))
    return scaled_gradient(read, gradient)


def condition_image(
    network: Harmon, condition: Condition, gradient: float = 1.0, dropout: Dropout | None = None
) -> Tensor | None:
    """Understanding embeddings [B, L + S, H] of a condition's images; None if it has none."""
    if condition.understanding is not None:
        return moved(condition.understanding, network.device)
    if condition.latents is None:
        return None
    return read_image(network, condition.latents, gradient, dropout)


def embed_prompts(
    network: Harmon,
    texts: Sequence[Sequence[int]],
    image: Tensor | None,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, H] of prompts with `image` [B, L + S, H] in its place, and their mask [B, T] on the host."""
    prompts = layouts.prompts(texts, network.config.end)
    if prompts.has_image != (image is not None):
        raise ValueError(
            "a prompt has a place for a picture, but there is none, or the other way round"
        )
    embeddings = network.embed(moved(prompts.ids, network.device))
    image = None if image is None else image.to(embeddings.dtype)
    return layouts.expanded(embeddings, prompts.mask, image, seen)


def for_sampling(network: Harmon) -> Harmon:
    """A copy with packed linear layers if the device benefits from them; everything else is shared."""
    copied = copy.copy(network)
    copied.__dict__["_modules"] = {
        name: part if packing.size(part) > packing.LIMIT else packing.packed(part, LEFT)
        for name, part in network._modules.items()
        if part is not None
    }
    return copied


LEFT = ("lm_head", "diffloss")
"""Modules that are not called in the sampler's loop, or are handled differently there."""


def _rolled(x: Tensor, first: int) -> Tensor:
    """Move the first `first` tokens of [B, T, W] to the end."""
    return torch.cat([x[:, first:], x[:, :first]], dim=1)


def _projector(before: int, after: int, inner: int | None = None) -> nn.Sequential:
    inner = after if inner is None else inner
    return nn.Sequential(nn.Linear(before, inner), nn.SiLU(), nn.Linear(inner, after))


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """The same x [B, L, D], with its gradient multiplied by `scale` (exact in the forward pass)."""
    return x if scale == 1 else _ScaledGradient.apply(x, scale)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient * ctx.scale, None
