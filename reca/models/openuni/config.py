"""The `network` section of an OpenUni: sizes, special tokens, image sizes, and what training leaves to choose.

Source: docs/reference/openuni.md a and b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reca_kernels import Implementation

from reca.core.structure import Count, Positive, Share
from reca.models.common import options as common

SHUFFLE = 2  # patches on a side that pixel shuffle makes one token (openuni.md c)
HEAD_TOKENS = (
    6  # of a text-to-image prompt after its caption: end, newline, assistant header, `<img>`
)

Crop = Literal["seeded", "centre", "stretch"]
"""How an image becomes a square for generation."""


@dataclass(frozen=True)
class LanguageConfig:
    """InternVL3's language model: Qwen2 sizes."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    rope_theta: Positive = 1e6
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Count = 32768
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """InternViT; `drop_path_rate` acts with `options.stochastic_depth` alone (openuni.md g1)."""

    hidden_size: Count = 1024
    intermediate_size: Count = 4096
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 16
    image_size: Count = 448
    patch_size: Count = 14
    drop_path_rate: float = 0.1
    layer_scale_init_value: float = 0.1
    initializer_range: float = 0.02

    @property
    def tokens(self) -> int:
        """Tokens of an image in the language model."""
        return (self.image_size // (self.patch_size * SHUFFLE)) ** 2


@dataclass(frozen=True)
class ConnectorConfig:
    """The bidirectional transformer between the queries and SANA; its width is the language model's."""

    intermediate_size: Count
    num_hidden_layers: Count = 6
    num_attention_heads: Count = 14


@dataclass(frozen=True)
class SanaConfig:
    """The diffusion transformer, in the words of diffusers' `SanaTransformer2DModel`.

    `qk_norm`: `rms_norm_across_heads` in SANA 1.5. `interpolation_scale`: of its sine and cosine position table; the
    released sizes have none (0).
    """

    num_layers: Count
    num_attention_heads: Count
    num_cross_attention_heads: Count
    cross_attention_head_dim: Count
    attention_head_dim: Count = 32
    caption_channels: Count = 2304
    mlp_ratio: Positive = 2.5
    qk_norm: Literal["none", "rms_norm_across_heads"] = "none"
    interpolation_scale: float = 0.0

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class VaeConfig:
    """The deep compression autoencoder (DC-AE), in the words of diffusers' `AutoencoderDC`; the defaults are f32c32.

    The first `residual` levels have residual blocks, the others EfficientViT blocks with a `multiscale` kernel.
    """

    latent_channels: Count = 32
    attention_head_dim: Count = 32
    channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    residual: Count = 3
    multiscale: Count = 5
    scaling_factor: Positive = 0.41407

    @property
    def factor(self) -> int:
        """Pixels per latent and side."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class SpecialIds:
    """Token ids around images, and `end`, which closes a turn."""

    image_start: int = 151665
    image_end: int = 151666
    image: int = 151667
    end: int = 151645


@dataclass(frozen=True)
class OpenUniOptions:
    """What the published training leaves to choose; the defaults are the published recipe (openuni.md e, g).

    `text_dropout`: share of text-to-image samples whose caption is dropped; RecA drops nothing. `max_prompt`: tokens of
    a text-to-image training prompt; `keep_header`: cut a long caption, not what follows it (published: the prompt is
    cut from the right). `timestep_shift` of the training times. `stochastic_depth`: RecA reads through a ViT that
    drops residual branches at random, as the official run does by oversight; the cache then holds the ViT's input.
    `step`: `two_phase` runs the prompt once without gradient, `one_pass` is the reference's; `recompute` its layers in
    the backward pass of the queries instead of keeping what they hold. `crop`: `seeded` squares
    are cut at a place that depends on the image alone. `system`: system message of a question (none by default).
    `frozen_dtype`: storage of InternVL3. `encode_batch`: images per pass of the frozen encoders. `implementation`: of
    the answers' loss, as `reca_kernels` names them.
    """

    text_dropout: Share = 0.1
    max_prompt: Count = 128
    keep_header: bool = False
    timestep_shift: Positive = 1.0
    stochastic_depth: bool = False
    step: Literal["two_phase", "one_pass"] = "two_phase"
    recompute: bool = True
    crop: Crop = "seeded"
    system: str = ""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    encode_batch: Count = 8
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        where = "network.options"
        if self.max_prompt <= HEAD_TOKENS:
            raise ValueError(
                f"{where}.max_prompt is {self.max_prompt}; the header after a caption takes {HEAD_TOKENS} tokens, "
                "give more"
            )


@dataclass(frozen=True)
class OpenUniConfig:
    """All sizes of an OpenUni; `resolution` is the side of the square image that is generated."""

    llm: LanguageConfig
    connector: ConnectorConfig
    sana: SanaConfig
    vit: VisionConfig = field(default_factory=VisionConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    special: SpecialIds = field(default_factory=SpecialIds)
    queries: Count = 256
    resolution: Count = 512

    def __post_init__(self) -> None:
        self._check_heads()
        self._check_vae()
        if self.vit.image_size % (SHUFFLE * self.vit.patch_size):
            raise ValueError(
                f"network.vit.image_size {self.vit.image_size} is not a multiple of {SHUFFLE} patches of "
                f"{self.vit.patch_size} pixels; change one"
            )
        if not 0 <= self.vit.drop_path_rate < 1:
            raise ValueError(
                f"network.vit.drop_path_rate is {self.vit.drop_path_rate}; it must be in [0, 1)"
            )
        for name, value in vars(self.special).items():
            if not 0 <= value < self.llm.vocab_size:
                raise ValueError(
                    f"network.special.{name} {value} is no token id; give one of 0..{self.llm.vocab_size - 1}"
                )

    def _check_heads(self) -> None:
        common.check_attention("network.llm", vars(self.llm), rotary=True)
        common.check_attention("network.vit", vars(self.vit))
        common.check_heads(
            ("network.connector.num_attention_heads", self.connector.num_attention_heads),
            ("network.llm.hidden_size", self.llm.hidden_size),
        )
        sana = self.sana
        if sana.num_cross_attention_heads * sana.cross_attention_head_dim != sana.width:
            raise ValueError(
                f"network.sana: {sana.num_cross_attention_heads} cross attention heads of "
                f"{sana.cross_attention_head_dim} are not the width {sana.width}; change one"
            )

    def _check_vae(self) -> None:
        vae = self.vae
        if not len(vae.channels) == len(vae.encoder_layers) == len(vae.decoder_layers):
            raise ValueError(
                "network.vae: channels, encoder_layers and decoder_layers must have one entry for each level"
            )
        if vae.channels[-1] % vae.latent_channels:
            raise ValueError(
                f"network.vae.latent_channels {vae.latent_channels} does not divide the last level's {vae.channels[-1]}"
            )
        if self.resolution % vae.factor:
            raise ValueError(
                f"network.resolution is {self.resolution}; it must be a multiple of {vae.factor}"
            )

    @property
    def latent_side(self) -> int:
        """Latents on a side of the image that is generated."""
        return self.resolution // self.vae.factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of its latents."""
        return self.vae.latent_channels, self.latent_side, self.latent_side


def parse(network: Mapping[str, Any]) -> tuple[OpenUniConfig, OpenUniOptions]:
    """Read a `network` section: the keys of `OpenUniConfig`, and `options` with those of `OpenUniOptions`."""
    return common.parse(network, OpenUniConfig, OpenUniOptions)
