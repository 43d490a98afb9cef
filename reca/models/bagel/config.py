"""The `network` section of a BAGEL: sizes, special tokens, image sizes and training options.

Source: docs/reference/bagel.md 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reca_kernels import Implementation

from reca.core.structure import Count, Positive, Share
from reca.models.common import options as common

TIME_FREQUENCIES = 256  # width of the sinusoidal time embedding (bagel.md 2)


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder: Qwen2 sizes; every layer has two experts of that size."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    rope_theta: Positive = 1e6
    rms_norm_eps: Positive = 1e-6

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP2 NaViT; `num_hidden_layers` counts the layers in use (the official config's minus one)."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    image_size: Count
    patch_size: Count

    @property
    def side(self) -> int:
        """Patches per side of the learned position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VaeConfig:
    """The FLUX autoencoder; every level but the last halves the image."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    norm_groups: int = 32
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels per latent."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True)
class SpecialIds:
    """Token ids around texts (bos, eos) and images."""

    bos: int = 151644
    eos: int = 151645
    start_of_image: int = 151652
    end_of_image: int = 151653


@dataclass(frozen=True)
class ImageSize:
    """Arguments of the resize rule R (bagel.md 2), in pixels."""

    most: int
    least: int


@dataclass(frozen=True)
class BagelOptions:
    """Training options; the defaults are the published RecA recipe.

    `text_dropout`: share of samples trained without text; `template_dropout`: the same for RecA's template (None:
    `text_dropout`). `timestep_shift`: sigma of the flow time. `freeze_und`: no gradient through the und expert
    (bagel.md 5); false trains both experts. `step`: `two_phase` runs the prefix once without gradient and caches its
    keys and values, `packed` is the reference's single pass. `condition`: RecA's condition, `vit` or the clean `vae`
    latents of the same image (the paper's ablation). `frozen_dtype`: dtype of frozen weights. `encode_batch`: images
    per pass of the frozen encoders. `implementation` of the losses and the attention over packs: see `reca_kernels`.
    `edit_vae_dropout`, `edit_vit_dropout`: share of edits trained without the source's clean latents or ViT features
    (bagel.md 2).
    """

    text_dropout: Share = 0.1
    template_dropout: Share | None = None
    timestep_shift: Positive = 1.0
    freeze_und: bool = True
    step: Literal["two_phase", "packed"] = "two_phase"
    condition: Literal["vit", "vae"] = "vit"
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    encode_batch: Count = 8
    implementation: Implementation = "auto"
    edit_vae_dropout: Share = 0.3
    edit_vit_dropout: Share = 0.3

    def __post_init__(self) -> None:
        if self.step == "two_phase" and not self.freeze_und:
            raise ValueError(
                "network.options.step 'two_phase' runs the prefix without gradient and requires "
                "freeze_und; set step: packed"
            )
        if self.step == "two_phase" and self.condition == "vae":
            raise ValueError(
                "network.options.condition 'vae' puts trained tokens into the prefix; set step: packed"
            )


@dataclass(frozen=True)
class BagelConfig:
    """All sizes of a BAGEL.

    `resolution` is the side of the square generated image; `condition_size` is the resize rule of RecA's condition,
    `read_size` that of images in questions, `edit_size` that of edited images, `vae_size` that of images for the VAE.
    """

    llm: LanguageConfig
    vit: VisionConfig
    vae: VaeConfig
    special: SpecialIds = field(default_factory=SpecialIds)
    latent_patch_size: int = 2
    max_latent_size: int = 64
    vit_max_num_patch_per_side: int = 70
    resolution: int = 1024
    condition_resolution: int = 224
    vae_size: ImageSize = ImageSize(1024, 512)
    read_size: ImageSize = ImageSize(980, 224)
    edit_size: ImageSize = ImageSize(980, 378)

    def __post_init__(self) -> None:
        common.check_attention("network.llm", vars(self.llm), rotary=True)
        common.check_attention("network.vit", vars(self.vit))
        if self.llm.hidden_size % 4:
            raise ValueError(
                f"network.llm.hidden_size {self.llm.hidden_size} must be a multiple of 4: the position tables are "
                "sines and cosines of rows and columns"
            )
        if self.resolution % self.stride:
            raise ValueError(
                f"network.resolution is {self.resolution}; it must be a multiple of {self.stride}"
            )
        if self.latent_side > self.max_latent_size:
            raise ValueError(
                f"network.resolution {self.resolution} needs {self.latent_side} latent patches per side, "
                f"max_latent_size is {self.max_latent_size}"
            )

    @property
    def stride(self) -> int:
        """Pixels per latent token."""
        return self.vae.downsample * self.latent_patch_size

    @property
    def latent_side(self) -> int:
        """Latent tokens per side of the generated image."""
        return self.resolution // self.stride

    @property
    def latent_tokens(self) -> int:
        """Number of latent tokens of the generated image."""
        return self.latent_side**2

    @property
    def latent_width(self) -> int:
        """Number of values of one latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels


def parse(network: Mapping[str, Any]) -> tuple[BagelConfig, BagelOptions]:
    """Parse a `network` section: the keys of `BagelConfig`, and `options` with those of `BagelOptions`."""
    config, options = common.parse(network, BagelConfig, BagelOptions)
    if options.condition == "vae" and config.condition_resolution % config.stride:
        raise ValueError(
            f"network.condition_resolution is {config.condition_resolution}; it must be a multiple of {config.stride} "
            "where network.options.condition is 'vae'"
        )
    return config, options
