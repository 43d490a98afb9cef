"""OpenUni's network: InternVL3, learned queries, a connector, a projector and SANA, of the libraries' own classes.

Source: docs/reference/openuni.md a, c, d and f. Letters: B batch, T text, N tokens of an image, Q queries, H width of
the language model, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLForConditionalGeneration
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from reca.models.common.batching import moved
from reca.models.openuni import layout
from reca.models.openuni.config import SHUFFLE, OpenUniConfig


def build_reader(config: OpenUniConfig) -> InternVLForConditionalGeneration:
    """An untrained InternVL3 (openuni.md a3)."""
    llm, vit = vars(config.llm), vars(config.vit)
    unused = ("drop_path_rate",)
    vision = InternVLVisionConfig(
        attention_bias=True,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        use_mean_pooling=True,
        **{name: value for name, value in vit.items() if name not in unused},
    )
    text = Qwen2Config(
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": config.llm.rope_theta},
        **{name: value for name, value in llm.items() if name != "rope_theta"},
    )
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=config.special.image,
            image_seq_length=config.vit.tokens,
            downsample_ratio=1 / SHUFFLE,
            tie_word_embeddings=False,  # the class ties by default, InternVL3 does not
        )
    )


def build_connector(config: OpenUniConfig) -> SiglipEncoder:
    """An untrained connector: SigLIP's encoder layers without a final norm."""
    sizes: Any = SiglipVisionConfig(
        hidden_size=config.llm.hidden_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        **vars(config.connector),
    )
    sizes._attn_implementation = "sdpa"  # a bare encoder does not choose
    connector = SiglipEncoder(sizes)
    for module in connector.modules():  # a bare encoder is not initialised by its class
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return connector


def build_sana(config: OpenUniConfig) -> SanaTransformer2DModel:
    """An untrained SANA (openuni.md a4)."""
    sizes, channels = dict(vars(config.sana)), config.vae.latent_channels
    scale, norm = sizes.pop("interpolation_scale"), sizes.pop("qk_norm")
    return SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=config.sana.width,
        sample_size=config.latent_side,
        interpolation_scale=scale or None,
        qk_norm=None if norm == "none" else norm,
        **sizes,
    )


class OpenUni(nn.Module):
    """All of OpenUni but its autoencoder, under the released names; `lmm` is frozen."""

    def __init__(self, config: OpenUniConfig) -> None:
        super().__init__()
        self.config = config
        width = config.llm.hidden_size
        self.lmm = build_reader(config).requires_grad_(False)
        self.meta_queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
        self.connector = build_connector(config)
        self.projector = nn.Linear(width, config.sana.caption_channels)
        self.transformer = build_sana(config)

    @torch.no_grad()
    def start(self, seed: int = 0) -> None:
        """New queries, connector and projector by a seed: what stage 1 trains, before any training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.meta_queries.normal_(std=self.config.llm.hidden_size**-0.5)
            self.connector.load_state_dict(build_connector(self.config).state_dict())
            self.projector.reset_parameters()

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.lmm.model.language_model

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.projector.weight.device

    # ---- reading ---------------------------------------------------------------------------------
    def read(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Understanding embeddings [B, N, H] of ViT inputs [B, 3, S, S] (openuni.md c).

        `keep` [layers, 2, B] (1 or 0): which residual branches count, attention and MLP (openuni.md g1); None: all.
        """
        pixels = moved(pixels, self.device, self.lmm.dtype)
        model: Any = self.lmm.model
        states = self._vit(pixels, keep)[:, 1:]
        side = self.config.vit.image_size // self.config.vit.patch_size
        grid = states.unflatten(1, (side, side))
        shuffled = model.pixel_shuffle(grid, scale_factor=1 / SHUFFLE).flatten(1, 2)
        return model.multi_modal_projector(shuffled)

    def _vit(self, pixels: Tensor, keep: Tensor | None) -> Tensor:
        """The ViT's last states, class token first."""
        tower: Any = self.lmm.model.vision_tower
        if keep is None:
            return tower(pixel_values=pixels).last_hidden_state
        x = tower.embeddings(pixels)
        x = x[0] if isinstance(x, tuple) else x
        rates = drop_rates(self.config)
        for layer, rate, kept in zip(
            tower.encoder.layer, rates, moved(keep, x.device, x.dtype), strict=True
        ):
            attention, mlp = (kept / (1 - rate)).unsqueeze(-1).unsqueeze(-1)
            branch, _ = layer.attention(layer.layernorm_before(x))
            x = x + attention * (layer.lambda_1 * branch)
            x = x + mlp * (layer.lambda_2 * layer.mlp(layer.layernorm_after(x)))
        return tower.layernorm(x)  # nothing: InternVL has no final norm

    # ---- the language model ----------------------------------------------------------------------
    def embed(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Embeddings [B, T, H] of ids [B, T], understanding embeddings [B, N, H] in the places of images."""
        embeddings = self.language.embed_tokens(moved(ids, self.device))
        if images is None:
            return embeddings
        return layout.with_images(embeddings, ids, images, self.config.special.image)

    def hidden(
        self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """Final states of embeddings [B, L, H]; the key mask covers what the cache holds, too.

        Masks and positions may be on the host: transformers would read a mask on the device, and wait for it.
        """
        attends = layout.attends(mask, embeddings.shape[1])
        return self.language(
            inputs_embeds=embeddings,
            attention_mask={
                "full_attention": None if attends is None else moved(attends, self.device)
            },
            position_ids=moved(positions, self.device),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def query_states(
        self, embeddings: Tensor, mask: Tensor, two_phase: bool = True, recompute: bool = False
    ) -> Tensor:
        """States [B, Q, H] of the queries after prompts [B, T, H] with key mask [B, T] (openuni.md d).

        `two_phase`: the prompt runs first, without gradient, and only its keys and values are kept: nothing before the
        queries is trained, and attention is causal (openuni.md g3). Otherwise everything runs in one pass. `recompute`:
        the second phase keeps the inputs of its layers alone, and computes the rest again in the backward pass.
        """
        queries = self.meta_queries.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        whole = layout.with_queries(mask, queries.shape[1])
        places = layout.positions(whole)
        if not two_phase:
            states = self.hidden(torch.cat([embeddings, queries], dim=1), whole, places)
            return states[:, -queries.shape[1] :]
        length, cache = mask.shape[1], DynamicCache()
        with torch.no_grad():
            self.hidden(embeddings, mask.long(), places[:, :length], cache)
        unchanging(cache)
        with recomputed(self.language.layers, recompute and torch.is_grad_enabled()):
            return self.hidden(queries, whole, places[:, length:], cache)

    # ---- generation ------------------------------------------------------------------------------
    def conditions(self, states: Tensor) -> Tensor:
        """What SANA attends to, [B, Q, D], of the queries' states [B, Q, H]."""
        states = states.to(self.projector.weight.dtype)
        return self.projector(self.connector(inputs_embeds=states).last_hidden_state)

    def velocity(self, latents: Tensor, conditions: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity [B, C, h, w] at latents [B, C, h, w] and timesteps [B] in 0..1000."""
        return self.transformer(
            latents, encoder_hidden_states=conditions, timestep=timesteps, return_dict=False
        )[0]


# ---- keys and values that stay as they are -----------------------------------------------------
def unchanging(cache: DynamicCache) -> None:
    """Let the cache's layers return kept and new keys and values [B, K, L, E] together without keeping the new ones."""
    layers: Any = cache.layers
    for layer in layers:
        layer.update = partial(_appended, layer.keys, layer.values)


def _appended(
    keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, *unused: Any, **more: Any
) -> tuple[Tensor, Tensor]:
    return torch.cat([keys, new_keys], dim=-2), torch.cat([values, new_values], dim=-2)


@contextmanager
def recomputed(layers: Iterable[nn.Module], enabled: bool) -> Iterator[None]:
    """While entered, layers keep their inputs alone; a layer must give the same when it runs again."""
    chosen = list(layers) if enabled else []
    for layer in chosen:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in chosen:
            layer.__dict__.pop("forward", None)


def drop_rates(config: OpenUniConfig) -> list[float]:
    """The ViT's rates of stochastic depth, linear from 0 to `drop_path_rate` over its layers (openuni.md g1)."""
    layers = config.vit.num_hidden_layers
    return torch.linspace(0, config.vit.drop_path_rate, layers, device="cpu").tolist()
