"""Phi-1.5 with qk-LayerNorm, Show-o's language model, under transformers' parameter names.

Results and initial weights are those of transformers' `PhiForCausalLM`, up to the GELU, which torch computes in one
operation (tests/models/test_transformers.py). Source: docs/reference/showo.md 1.1. Letters: B batch, L tokens,
D width, H heads, E head width, of which R are rotary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reca.models.common.attention import KeyValueCache, Rotary, rotary, rotate
from reca.models.common.layers import Mlp, initialise
from reca.models.showo.attention import Attention
from reca.models.showo.config import LanguageConfig


class PhiAttention(nn.Module):
    """Projections, qk-LayerNorm and partly rotary positions; how tokens see each other is the caller's."""

    def __init__(self, config: LanguageConfig, number: int) -> None:
        super().__init__()
        self.number, self.head_dim, self.rotated = number, config.head_dim, config.rotary_dim
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, heads)
        self.k_proj, self.v_proj = nn.Linear(width, shared), nn.Linear(width, shared)
        self.dense = nn.Linear(heads, width)
        self.q_layernorm = nn.LayerNorm(config.head_dim, config.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(config.head_dim, config.layer_norm_eps)

    def forward(
        self, x: Tensor, rotary: Rotary, attention: Attention, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]; rotary is [B or 1, 1, L, R], and the cache is extended."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._turned(self.q_layernorm(q), rotary), self._turned(self.k_layernorm(k), rotary)
        if cache is not None:
            k, v = cache.extended(self.number, k, v)
        return self.dense(attention(q, k, v).flatten(2))

    def _turned(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Queries or keys [B, H, L, E] whose first R values of each head are turned."""
        turned, rest = x[..., : self.rotated], x[..., self.rotated :]
        return torch.cat([rotate(turned, rotary), rest], dim=-1)


class PhiLayer(nn.Module):
    """One decoder layer: attention and MLP side by side, of the same normalised input."""

    def __init__(self, config: LanguageConfig, number: int) -> None:
        super().__init__()
        self.self_attn = PhiAttention(config, number)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, x: Tensor, rotary: Rotary, attention: Attention, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        normed = self.input_layernorm(x)
        return self.self_attn(normed, rotary, attention, cache) + self.mlp(normed) + x


class PhiModel(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, config: LanguageConfig, vocab_size: int) -> None:
        super().__init__()
        self.rotary_dim, self.theta = config.rotary_dim, config.rope_theta
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            PhiLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None,
        attention: Attention,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final hidden states of embeddings [B, L, D]; positions [B, L] default to those that follow the cache."""
        if positions is None:
            start, length = cache.length if cache else 0, embeddings.shape[1]
            positions = torch.arange(start, start + length, device=embeddings.device).unsqueeze(0)
        cos, sin = (
            part.to(embeddings.dtype).unsqueeze(1)
            for part in rotary(positions, self.rotary_dim, self.theta)
        )
        x = embeddings
        for layer in self.layers:
            x = layer(x, (cos, sin), attention, cache)
        return self.final_layernorm(x)


class PhiForCausalLM(nn.Module):
    """The decoder with its untied head."""

    def __init__(self, config: LanguageConfig, vocab_size: int) -> None:
        super().__init__()
        self.model = PhiModel(config, vocab_size)
        initialise(self.model, _INITIALISER_RANGE)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size)
        initialise(self.lm_head, _INITIALISER_RANGE)


_INITIALISER_RANGE = 0.02
"""Standard deviation of initial weights."""
