"""The `network` section of a BAGEL: sizes, special tokens, image sizes, and what training leaves to choose.

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
    """The decoder: Qwen2 sizes; every layer has two experts of them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP2 NaViT; `num_hidden_layers` counts the layers that are built (the official config's minus one)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int

    @property
    def side(self) -> int:
        """Patches on a side of the learned position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VaeConfig:
    """The FLUX autoencoder; one halving per level but the last."""

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
    """What the published training leaves to choose; the defaults are the published RecA recipe.

    `text_dropout`: share of samples trained without their text; `template_dropout`: the same for RecA's template (None:
    `text_dropout`). `timestep_shift`: sigma of the flow time. `freeze_und`:
    no gradient through the und expert (bagel.md 5); false trains both experts. `step`: `two_phase` runs the prefix once
    without gradient and keeps its keys and values, `packed` is the reference's one pass. `condition`: what RecA draws
    from, `vit` or the clean `vae` latents of the same image (paper's ablation). `frozen_dtype`: storage of what is not
    trained. `encode_batch`: pictures per pass of the frozen encoders. `implementation`: of the losses and of a pack's
    attention, as `reca_kernels` names them. `edit_vae_dropout`, `edit_vit_dropout`: share of edits trained without the
    source's clean latents, without what was seen of it (bagel.md 2).
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
                "network.options.step 'two_phase' keeps a prefix without gradient and so needs "
                "freeze_und; set step: packed"
            )
        if self.step == "two_phase" and self.condition == "vae":
            raise ValueError(
                "network.options.condition 'vae' puts trained tokens into the prefix; set step: packed"
            )


@dataclass(frozen=True)
class BagelConfig:
    """All sizes of a BAGEL.

    `resolution` is the side of the square picture that is drawn; `condition_size` prepares RecA's condition,
    `read_size` what questions are asked about, `edit_size` what is edited, `vae_size` the pictures for the VAE.
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
        if self.llm.hidden_size % (2 * self.llm.num_attention_heads):
            raise ValueError(
                f"network.llm.hidden_size {self.llm.hidden_size} must be a multiple of twice the "
                f"{self.llm.num_attention_heads} heads: rotary positions turn pairs"
            )
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
                f"network.resolution {self.resolution} needs {self.latent_side} latent patches a side, "
                f"max_latent_size is {self.max_latent_size}"
            )

    @property
    def stride(self) -> int:
        """Pixels per latent token."""
        return self.vae.downsample * self.latent_patch_size

    @property
    def latent_side(self) -> int:
        """Latent tokens on a side of the picture that is drawn."""
        return self.resolution // self.stride

    @property
    def latent_tokens(self) -> int:
        """Latent tokens of the picture that is drawn."""
        return self.latent_side**2

    @property
    def latent_width(self) -> int:
        """Values of one latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels


def parse(network: Mapping[str, Any]) -> tuple[BagelConfig, BagelOptions]:
    """Read a `network` section: the keys of `BagelConfig`, and `options` with those of `BagelOptions`."""
    return common.parse(network, BagelConfig, BagelOptions)
