"""Qwen2.5, Harmon's language model, under transformers' parameter names.

Results and initial weights are those of transformers' `Qwen2ForCausalLM` with SDPA
(tests/models/test_transformers.py). Source: docs/reference/harmon.md a. Letters: B batch, T tokens, P tokens of the
cache, H width, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from reca_kernels import Implementation, Layout, block_attention
from torch import Tensor, nn

from reca.models.common.attention import KeyValueCache, Rotary, attend, rotary, rotate
from reca.models.common.batching import moved
from reca.models.common.layers import GatedMlp, RMSNorm, initialise
from reca.models.harmon.config import LanguageConfig


@dataclass(frozen=True)
class Samples:
    """In place of a mask: the samples of tokens without padding, and the implementation of their attention."""

    layout: Layout
    implementation: Implementation = "auto"


class Qwen2Attention(nn.Module):
    """Causal attention whose key/value heads are shared by groups of queries."""

    def __init__(self, config: LanguageConfig, number: int) -> None:
        super().__init__()
        self.number, self.head_dim = number, config.head_dim
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, heads)
        self.k_proj, self.v_proj = nn.Linear(width, shared), nn.Linear(width, shared)
        self.o_proj = nn.Linear(heads, width, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | Samples | None, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, T, H] -> [B, T, H]; rotary is [B or 1, 1, T, E], and the cache is extended.

        With samples, x [1, T, H] are the tokens of all of them.
        """
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        if isinstance(mask, Samples):
            q, k, v = (part.squeeze(0).transpose(0, 1) for part in (q, k, v))
            out = block_attention(q, k, v, mask.layout, implementation=mask.implementation)
            return self.o_proj(out.flatten(1)).unsqueeze(0)
        if cache is not None:
            k, v = cache.extended(self.number, k, v)
        return self.o_proj(attend(q, k, v, mask, causal=True).flatten(2))


class Qwen2Layer(nn.Module):
    """One decoder layer: pre-norm attention and gated MLP."""

    def __init__(self, config: LanguageConfig, number: int) -> None:
        super().__init__()
        self.self_attn = Qwen2Attention(config, number)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | Samples | None, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen2Layer(config, number) for number in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final hidden states of embeddings [B, T, H].

        `positions` [B, T] default to those that follow the cache; `mask` [B, P + T] hides keys with 0.
        """
        past, length = cache.length if cache else 0, embeddings.shape[1]
        if positions is None:
            positions = torch.arange(past, past + length, device=embeddings.device).unsqueeze(0)
        seen = causal_mask(mask, length, past, embeddings.device)
        return self._layers(embeddings, positions, seen, cache)

    def without_padding(
        self,
        embeddings: Tensor,
        positions: Tensor | None,
        mask: Tensor,
        implementation: Implementation,
    ) -> Tensor:
        """As `forward` without a cache; padding costs nothing and gets states of 0. `mask` [B, T] is on the host."""
        batch, length = mask.shape
        device, real = embeddings.device, mask.flatten().bool()
        if positions is None:
            positions = torch.arange(length, device=device).expand(batch, -1)
        places = moved(real.nonzero().squeeze(1), device)
        layout = Layout.packed([[("causal", count)] for count in mask.sum(dim=1).tolist()])
        own = embeddings.flatten(0, 1)[places].unsqueeze(0)
        samples = Samples(layout.to(device), implementation)
        states = self._layers(own, positions.flatten()[places].unsqueeze(0), samples)
        every = states.new_zeros(batch * length, states.shape[-1])
        return every.index_copy(0, places, states.squeeze(0)).unflatten(0, (batch, length))

    def _layers(
        self,
        x: Tensor,
        positions: Tensor,
        seen: Tensor | Samples | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final states [B, T, H] of x [B, T, H] at positions [B or 1, T]."""
        cos, sin = (
            part.to(x.dtype).unsqueeze(1) for part in rotary(positions, self.head_dim, self.theta)
        )
        for layer in self.layers:
            x = layer(x, (cos, sin), seen, cache)
        return self.norm(x)


def causal_mask(mask: Tensor | None, length: int, past: int, device: torch.device) -> Tensor | None:
    """Which of P + T keys each of T queries sees, bool [B or 1, 1, T, P + T]; None where causality alone decides.

    `mask` [B, P + T] hides keys with 0. A mask on the host is inspected
    there, so that training does not wait for the device.
    """
    if (length == 1 or not past) and (mask is None or bool(mask.all())):
        return None
    mask = None if mask is None else moved(mask.bool(), device)
    keys = torch.arange(past + length, device=device)
    causal = keys <= keys[past:].unsqueeze(1)
    return causal[None, None] if mask is None else causal & mask[:, None, None]


class Qwen2ForCausalLM(nn.Module):
    """The decoder with a head that shares the embedding's weight."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Qwen2Model(config)
        initialise(self.model, config.initializer_range)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(self.lm_head, config.initializer_range)  # as transformers, before it is tied
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head use the embedding's weight; once more where parameters were replaced one by one."""
        self.lm_head.weight = self.model.embed_tokens.weight
