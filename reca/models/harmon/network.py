"""Harmon's trainable network under its released names: Qwen2.5 (`llm`), the masked autoencoder (`mar`), projectors.

The encoder of the masked autoencoder is shared: it reads a picture (nothing masked) and encodes what is visible of
the one that is drawn. Source: reference/harmon/SPEC.md sections a, c, d1 and f. Letters: B batch, L latents of a
picture, V visible ones, S buffers, E and D widths of encoder and decoder, H width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, Qwen2Config, Qwen2ForCausalLM

from reca.models.harmon.config import HarmonConfig, MarConfig
from reca.models.harmon.diffusion import DiffusionHead


@dataclass(frozen=True)
class Dropout:
    """Where dropout draws from: a seed that was drawn at the edge, so that losses stay pure functions.

    Each block draws from a generator of its own (`seed`, block), so recomputing one in the backward pass draws the
    same again.
    """

    seed: int

    @contextmanager
    def block(self, number: int, device: torch.device) -> Iterator[None]:
        """Let the operations inside draw by (seed, number); the global generators are as before behind it."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self.seed + number * 0x9E3779B97F4A7C15) % 2**63)
            yield

    def branch(self, number: int) -> Dropout:
        """Another stream of the same draws: one for each pass through a tower."""
        return Dropout((self.seed ^ ((number + 1) * 0xD1B54A32D192ED03)) % 2**63)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, rates: tuple[float, float]) -> None:
        super().__init__()
        self.heads, self.rates = heads, rates
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rows: Tensor | None, dropping: bool) -> Tensor:
        width = x.shape[-1]
        attended, projected = self.rates if dropping else (0.0, 0.0)
        if rows is None:
            q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:  # only these places ask; all are asked
            weight, bias = self.qkv.weight, self.qkv.bias
            q = self._split(F.linear(_places(x, rows), weight[:width], bias[:width]))
            both = F.linear(x, weight[width:], bias[width:])
            k, v = (self._split(part) for part in both.chunk(2, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=attended)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), projected)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, width: int, ratio: float, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor, dropping: bool) -> Tensor:
        rate = self.rate if dropping else 0.0
        return F.dropout(self.fc2(F.dropout(F.gelu(self.fc1(x)), rate)), rate)


class Block(nn.Module):
    """Pre-norm transformer block, attention both ways; dropout where its draws are given."""

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
    ) -> Tensor:
        """[B, N, W] -> the same; with `rows` [B, R] only these places of the result, [B, R, W]."""
        if dropout is None:
            return self._run(x, rows, dropping=False)
        with dropout.block(number, x.device):
            return self._run(x, rows, dropping=True)

    def _run(self, x: Tensor, rows: Tensor | None, dropping: bool) -> Tensor:
        kept = x if rows is None else _places(x, rows)
        kept = kept + self.attn(self.norm1(x), rows, dropping)
        return kept + self.mlp(self.norm2(kept), dropping)


def _places(x: Tensor, rows: Tensor) -> Tensor:
    """The places `rows` [B, R] of x [B, N, W]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Mar(nn.Module):
    """The masked autoencoder under its released names; buffers come first in every sequence here."""

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder, cells = config.encoder_width, config.decoder_width, config.table**2
        # Not used by Harmon; released checkpoints hold it.
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
        self.z_proj = nn.Linear(config.latent_channels, encoder)
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
            config.latent_channels,
            decoder,
            config.head_width,
            config.head_depth,
            config.sampling_steps,
        )
        self._initialise()

    def _initialise(self) -> None:
        """MAR's initialisation: small normal tables and tokens, and a head that starts at zero modulation."""
        for name, table in self.named_parameters():
            if name.endswith(("_learned", "mask_token", "fake_latent")):
                nn.init.normal_(table, std=0.02)
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
        """Latents [B, L, C] -> [B, S + V, E]; `visible` [B, V] are the places to see in raster order, all by default.

        `positions`: the encoder's table for this grid, where the caller has it already.
        """
        if positions is None:
            positions = self.positions(self.encoder_pos_embed_learned, grid)
        tokens, buffers = latents.to(self.z_proj.weight.dtype), self.config.buffers
        places = positions[:, buffers:].expand(len(tokens), -1, -1)
        if (
            visible is not None
        ):  # the table's rows go with their tokens, so what is hidden is never projected
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
        positions: tuple[Tensor, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Encoded buffers and visible places [B, S + V, E] -> conditions z of the head, [B, L, D].

        With `rows` [B, R] only for these places, [B, R, D]. `positions`: the decoder's and the head's tables.
        """
        if positions is None:
            positions = self.decoder_positions(grid)
        table, head_table = positions
        buffers, count = self.config.buffers, grid[0] * grid[1]
        x = self.decoder_embed(encoded)
        blank = self.mask_token.to(x.dtype).expand(len(x), count, -1)
        index = visible.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        tokens = blank.scatter(1, index, x[:, buffers:])
        x = torch.cat([x[:, :buffers], tokens], dim=1) + table
        wanted = None if rows is None else rows + buffers
        last = len(self.decoder_blocks) - 1
        for number, block in enumerate(self.decoder_blocks):
            x = block(x, wanted if number == last else None, dropout, number)
        x = self.decoder_norm(x)
        if rows is None:
            return x[:, buffers:] + head_table
        return x + _places(head_table.expand(len(x), -1, -1), rows)

    def decoder_positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The decoder's table with buffers, and the diffusion head's."""
        return (
            self.positions(self.decoder_pos_embed_learned, grid),
            self.positions(self.diffusion_pos_embed_learned, grid),
        )


class Harmon(nn.Module):
    """All that a Harmon checkpoint stores beside the VAE: `llm.*`, `mar.*`, `proj_in.*`, `proj_out.*`."""

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Qwen2ForCausalLM(
            Qwen2Config(
                tie_word_embeddings=True, use_sliding_window=False, use_cache=False, **config.llm
            )
        )
        self.llm.set_attn_implementation("sdpa")
        self.mar = Mar(config.mar)
        width = config.llm_value("hidden_size")
        self.proj_in = _projector(config.mar.encoder_width, width)
        self.proj_out = _projector(width, config.mar.encoder_width, inner=width)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [B, T, H] of ids [B, T]; image placeholders (negative) become id 0."""
        return self.llm.model.embed_tokens(ids.clamp(min=0))

    def understand(
        self, latents: Tensor, grid: tuple[int, int], dropout: Dropout | None = None
    ) -> Tensor:
        """h_v [B, L + S, H]: what the encoder hands to the language model, buffers last (SPEC c)."""
        return self.to_llm(self.mar.encode(latents, grid, dropout=dropout))

    def to_llm(self, encoded: Tensor) -> Tensor:
        """Encoder output [B, S + V, E] as language model inputs [B, V + S, H]: buffers move to the end."""
        return _rolled(self.proj_in(encoded), self.config.mar.buffers)

    def with_context(self, encoded: Tensor, hidden: Tensor) -> Tensor:
        """Add what the language model makes of image tokens, hidden [B, V + S, H], to the encoder output."""
        return encoded + _rolled(self.proj_out(hidden), hidden.shape[1] - self.config.mar.buffers)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, H] of input embeddings; causal, `mask` [B, past + T] hides keys with 0.

        `positions` [B, T] default to 0..T-1 behind the cache, which is extended in place.
        """
        output = self.llm.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state


def _rolled(x: Tensor, first: int) -> Tensor:
    """Move the first `first` tokens of [B, T, W] to the end."""
    return torch.cat([x[:, first:], x[:, :first]], dim=1)


def _projector(before: int, after: int, inner: int | None = None) -> nn.Sequential:
    inner = after if inner is None else inner
    return nn.Sequential(nn.Linear(before, inner), nn.SiLU(), nn.Linear(inner, after))


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """The same x, with its gradient multiplied by `scale` (exact in the forward pass)."""
    return x if scale == 1 else _ScaledGradient.apply(x, scale)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient * ctx.scale, None
