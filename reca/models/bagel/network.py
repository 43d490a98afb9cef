"""BAGEL's mixture of transformers, under the official names.

Every layer has two experts: und (text, image markers, ViT tokens) and gen (latents). The two kinds of token are kept
in separate tensors, so nothing is scattered or gathered; they interact only in attention.
Source: docs/reference/bagel.md 3. Letters: T tokens of one expert (leading axes are free), D width, H heads, K
key/value heads, E head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.bagel.config import TIME_FREQUENCIES, BagelConfig, LanguageConfig
from reca.models.bagel.vision import VisionTower
from reca.models.common.attention import Rotary, rotate
from reca.models.common.embeddings import sincos_table, timestep_code
from reca.models.common.layers import GatedMlp, RMSNorm

GEN = "_moe_gen"  # suffix of the gen expert's weights


@dataclass(frozen=True)
class Pair:
    """Tokens by expert: `und` [..., D] and `gen` [..., D]; either may be empty."""

    und: Tensor
    gen: Tensor


@dataclass(frozen=True)
class Heads:
    """Queries [..., H, E], keys and values [..., K, E] of one expert's tokens."""

    q: Tensor
    k: Tensor
    v: Tensor


class Attend(Protocol):
    """Attention over the tokens of both experts."""

    def __call__(self, read: Heads, drawn: Heads) -> tuple[Tensor, Tensor]:
        """Outputs [..., H, E] of und and gen tokens."""
        ...


@runtime_checkable
class KeepingAttend(Attend, Protocol):
    """Attention whose keys and values later blocks attend to."""

    def keep(self, read: Heads, drawn: Heads) -> None:
        """Take the keys and values; nothing attends."""
        ...


def no_grad_if(frozen: bool) -> contextlib.AbstractContextManager[None]:
    """Context without gradients if `frozen`."""
    return torch.no_grad() if frozen else contextlib.nullcontext()


class MoTAttention(nn.Module):
    """Two sets of projections and head norms; the attention function is passed in."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.head_dim = head
        for suffix in ("", GEN):
            for name, heads in (
                ("q_proj", config.num_attention_heads),
                ("k_proj", config.num_key_value_heads),
                ("v_proj", config.num_key_value_heads),
            ):
                self.add_module(name + suffix, nn.Linear(width, heads * head, bias=True))
            out = nn.Linear(config.num_attention_heads * head, width, bias=False)
            self.add_module("o_proj" + suffix, out)
            self.add_module("q_norm" + suffix, RMSNorm(head, config.rms_norm_eps))
            self.add_module("k_norm" + suffix, RMSNorm(head, config.rms_norm_eps))

    def heads(self, x: Tensor, rotary: Rotary, suffix: str) -> Heads:
        """Normalised, rotated queries and keys, and values, of one expert's tokens x [..., D]."""
        parts = self._modules
        q, k, v = (
            parts[name + suffix](x).unflatten(-1, (-1, self.head_dim))  # type: ignore[misc]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = parts["q_norm" + suffix](q), parts["k_norm" + suffix](k)  # type: ignore[misc]
        of_heads = rotary[0].unsqueeze(-2), rotary[1].unsqueeze(-2)
        return Heads(rotate(q, of_heads), rotate(k, of_heads), v)

    def out(self, attended: Tensor, suffix: str) -> Tensor:
        """Output projection of one expert's attention output [..., H, E]."""
        return self._modules["o_proj" + suffix](attended.flatten(-2))  # type: ignore[misc]


class MoTLayer(nn.Module):
    """One decoder layer: pre-norm attention and a gated MLP, each by the token's expert."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = MoTAttention(config)
        for suffix in ("", GEN):
            mlp = GatedMlp(config.hidden_size, config.intermediate_size)
            self.add_module("mlp" + suffix, mlp)
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
                self.add_module(name + suffix, norm)

    def forward(
        self,
        und: Tensor,
        gen: Tensor,
        rotary: tuple[Rotary, Rotary],
        attend: Attend,
        frozen: bool,
        keys_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream of both experts after this layer.

        `frozen` blocks all gradients through und tokens: their queries, keys, values, attention output and MLP are
        constants (bagel.md 5), even if they attend to gen tokens. `keys_only`: nothing reads the stream after this
        layer, so the tokens are only offered to `attend`, and returned as they came.
        """
        # only without gradients: in training, the weights of an expert without tokens have gradients of 0, not none
        skipped = not gen.shape[-2] and not torch.is_grad_enabled()
        with no_grad_if(frozen):
            read = self.self_attn.heads(self._part("input_layernorm", "", und), rotary[0], "")
        if skipped:
            drawn = Heads(*(part[..., :0, :, :] for part in (read.q, read.k, read.v)))
        else:
            drawn = self.self_attn.heads(self._part("input_layernorm", GEN, gen), rotary[1], GEN)
        if keys_only:
            assert isinstance(attend, KeepingAttend), "a pack keeps no keys and values"
            attend.keep(read, drawn)
            return und, gen
        seen, made = attend(read, drawn)
        with no_grad_if(frozen):
            und = self._rest(und, seen, "")
        return und, (gen if skipped else self._rest(gen, made, GEN))

    def _rest(self, x: Tensor, attended: Tensor, suffix: str) -> Tensor:
        x = x + self.self_attn.out(attended, suffix)
        return x + self._part("mlp", suffix, self._part("post_attention_layernorm", suffix, x))

    def _part(self, name: str, suffix: str, x: Tensor) -> Tensor:
        return self._modules[name + suffix](x)  # type: ignore[misc]


class MoTModel(nn.Module):
    """Embedding, layers and one final norm per expert."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config) for _ in range(config.num_hidden_layers))
        for suffix in ("", GEN):
            norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.add_module("norm" + suffix, norm)

    def rotary(self, positions: Tensor) -> Rotary:
        """Cos and sin [..., E] of rope ids [...], in float32."""
        # recomputed: a buffer would stay on the meta device when the weights are assigned
        span = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        angles = positions.float().unsqueeze(-1) * self.theta ** (-span / self.head_dim)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    def forward(
        self,
        tokens: Pair,
        positions: tuple[Tensor, Tensor],
        attends: Sequence[Attend],
        *,
        frozen: bool = False,
        collect: list[Pair] | None = None,
        keys_only: bool = False,
    ) -> Pair:
        """Final normalised states of both experts.

        `positions` are the rope ids of und and gen tokens, `attends` the attention of each layer; `collect` receives
        the residual stream after every layer. `keys_only`: what counts is what `attends` keep, so the last layer
        neither attends nor transforms, and the result is not to be used. ValueError if the experts have different
        dtypes, without autocast.
        """
        dtypes = {self._modules["norm" + suffix].weight.dtype for suffix in ("", GEN)}  # type: ignore[union-attr]
        if len(dtypes) > 1 and not torch.is_autocast_enabled(tokens.gen.device.type):
            raise ValueError(
                "network.options.frozen_dtype is bfloat16, and this run computes in fp32; set align.precision to bf16, "
                "or frozen_dtype to float32"
            )
        rotary = (self.rotary(positions[0]), self.rotary(positions[1]))
        und, gen = (tokens.und.detach() if frozen else tokens.und), tokens.gen
        last = len(self.layers) - 1
        for number, (layer, attend) in enumerate(zip(self.layers, attends, strict=True)):
            und, gen = layer(und, gen, rotary, attend, frozen, keys_only and number == last)
            if collect is not None:
                collect.append(Pair(und, gen))
        if keys_only:
            return Pair(und, gen)
        with no_grad_if(frozen):
            und = self._modules["norm"](und)  # type: ignore[misc]
        return Pair(und, self._modules["norm" + GEN](gen))  # type: ignore[misc]


class LanguageModel(nn.Module):
    """The decoder with its untied head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Connector(nn.Module):
    """Two linear layers with a tanh-GELU in between: ViT width to decoder width."""

    def __init__(self, vision: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(vision, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., Dvit] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TimeEmbedder(nn.Module):
    """MLP on sines and cosines of the flow time, which is in [0, 1] and not scaled (bagel.md 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, t: Tensor) -> Tensor:
        """T [n] -> [n, D]."""
        return self.mlp(timestep_code(t, TIME_FREQUENCIES))


class FixedTable(nn.Module):
    """The table of bagel.md 2: sines and cosines [side * side, D]; part of the checkpoint, never learned."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        if torch.get_default_device().type == "meta":
            table = torch.empty(side * side, width)
        else:
            table = sincos_table(side, width)
        self.register_buffer("pos_embed", table)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ids (row * side + column), [..., D]."""
        return self._buffers["pos_embed"][ids]  # type: ignore[index]


def shifted(t: Tensor, shift: float) -> Tensor:
    """Sigma t / (1 + (sigma - 1) t): time shifted towards noise for sigma > 1."""
    return shift * t / (1 + (shift - 1) * t)


class Bagel(nn.Module):
    """Everything in the released `ema.safetensors`; the VAE is a separate file and module."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config, width = config, config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionTower(config.vit)
        self.connector = Connector(config.vit.hidden_size, width)
        self.vae2llm = nn.Linear(config.latent_width, width)
        self.llm2vae = nn.Linear(width, config.latent_width)
        self.time_embedder = TimeEmbedder(width)
        self.latent_pos_embed = FixedTable(config.max_latent_size, width)
        self.vit_pos_embed = FixedTable(config.vit_max_num_patch_per_side, width)

    @property
    def decoder(self) -> MoTModel:
        """The mixture of transformers."""
        return self.language_model.model

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., D]."""
        return self.decoder.embed_tokens(ids)

    def read(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Understanding embeddings [..., D] of ViT states [..., Dvit] at position ids [...] (bagel.md 3)."""
        return self.connector(hidden) + self.vit_pos_embed(ids)

    def latents_in(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Decoder inputs [..., N, D] of noisy latent tokens x [..., N, C].

        `t` is one time per token [..., N] or per image [..., 1]; `ids` are positions in the latent table, [N] or
        [..., N].
        """
        time = self.time_embedder(t.reshape(-1)).unflatten(0, t.shape)
        return self.vae2llm(x) + time + self.latent_pos_embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores [..., V] of final und states."""
        return self.language_model.lm_head(hidden)
