"""Configuration of a Harmon: language model, masked autoencoder (MAR), VAE; converted from and to plain data.

Source: docs/reference/harmon.md a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from reca_kernels import Implementation

from reca.models.common import options as common
from reca.models.common.options import check_numbers, check_positive

TRAIN_STEPS = 1000  # of the diffusion process; sampling uses a subset

QWEN2_5: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}

Drawing = Literal["stretch", "crop", "pad"]
"""How an image becomes square for generation."""


@dataclass(frozen=True)
class MarConfig:
    """The masked autoencoder and its diffusion head; the defaults are MAR-base (Harmon-0.5B).

    `buffers` S leading buffer tokens; `table` side of the learned position grids, resized to the image's grid;
    `min_mask_rate` bounds the training mask; `repeats` noise samples per token and step; `sampling_steps` of the
    reverse diffusion. `noise_schedule`: Harmon's is cosine, which multiplies the head's error near pure noise by
    hundreds; `linear` (Ho et al. 2020) tolerates a small head. `initializer_range`: standard deviation of the position
    tables and learned tokens of an untrained network. `attention_dropout` and `dropout` apply in training only, seeded.
    """

    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    latent_channels: int = 16
    buffers: int = 64
    table: int = 16
    classes: int = 1000
    attention_dropout: float = 0.1
    dropout: float = 0.1
    min_mask_rate: float = 0.7
    head_depth: int = 6
    head_width: int = 1024
    repeats: int = 4
    sampling_steps: int = 100
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        counts = (f.name for f in fields(self) if f.type == "int")  # annotations are strings here
        check_positive("network.mar", vars(self), *counts)
        for name in ("encoder", "decoder"):
            width, heads = getattr(self, f"{name}_width"), getattr(self, f"{name}_heads")
            if width % heads:
                raise ValueError(
                    f"network.mar.{name}_width {width} is not divisible by {heads} heads; change one"
                )
            if self.mlp_ratio * width < 1:
                raise ValueError(
                    f"network.mar.mlp_ratio is {self.mlp_ratio}; it must leave one value of {width}"
                )
        for name in ("attention_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"network.mar.{name} is {getattr(self, name)}; it must be in [0, 1)"
                )
        if not 0 < self.min_mask_rate < 1:
            raise ValueError(
                f"network.mar.min_mask_rate is {self.min_mask_rate}; it must be between 0 and 1"
            )
        check_positive("network.mar", vars(self), "initializer_range")
        if not 2 <= self.sampling_steps <= TRAIN_STEPS:
            raise ValueError(
                f"network.mar.sampling_steps is {self.sampling_steps}; it must be in 2..{TRAIN_STEPS}"
            )


@dataclass(frozen=True)
class VaeConfig:
    """The KL autoencoder (frozen): base width, multipliers of its levels, and the scale of its latents."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    resnets: int = 2
    groups: int = 32
    scale: float = 0.2325

    def __post_init__(self) -> None:
        check_positive("network.vae", vars(self), "width", "resnets", "groups", "scale")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"network.vae.multipliers is {list(self.multipliers)}; give one of 1 or more for each level"
            )
        for level in self.multipliers:
            if self.width * level % self.groups:
                raise ValueError(
                    f"network.vae.groups {self.groups} does not divide a level's width {self.width} x {level}; "
                    "change groups, width or multipliers"
                )

    @property
    def factor(self) -> int:
        """Pixels per latent along a side: every level but the last halves the image."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class HarmonConfig:
    """Configuration of a complete Harmon; the defaults are Harmon-0.5B at 512 pixels.

    `llm` are keyword arguments of Qwen2Config. `resolution` is the side of an image in pixels, or [height, width].
    `end` is the id of `<|im_end|>`, which ends an answer and pads a batch.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(QWEN2_5))
    mar: MarConfig = field(default_factory=MarConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    resolution: Any = 512  # checked below: the parser does not support union types
    end: int = 151645

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _resolution(self.resolution))
        self._check_llm()
        for side in self.size:
            if side < self.vae.factor or side % self.vae.factor:
                raise ValueError(
                    f"network.resolution {self.resolution} is not a multiple of the VAE's "
                    f"{self.vae.factor} pixels per latent; change one of them"
                )
        if not 0 <= self.end < self.llm_value("vocab_size"):
            raise ValueError(
                f"network.end {self.end} is not a text id; give one of 0..{self.llm_value('vocab_size') - 1}"
            )

    def _check_llm(self) -> None:
        check_numbers("network.llm", self.llm, QWEN2_5)
        heads, width = self.llm_value("num_attention_heads"), self.llm_value("hidden_size")
        if width % (2 * heads):
            raise ValueError(
                f"network.llm.num_attention_heads {heads} does not divide hidden_size {width} into heads "
                "of an even width; change one"
            )
        if heads % (shared := self.llm_value("num_key_value_heads")):
            raise ValueError(
                f"network.llm.num_key_value_heads {shared} does not divide num_attention_heads {heads}; "
                "change one"
            )

    # ---- derived sizes --------------------------------------------------------------------------
    def llm_value(self, name: str) -> Any:
        """A value of the language model's configuration; the default is that of the released 0.5B model."""
        return self.llm.get(name, QWEN2_5[name])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        height, width = self.size
        return height // self.vae.factor, width // self.vae.factor

    @property
    def tokens(self) -> int:
        """Number of latents per image, L."""
        rows, columns = self.grid
        return rows * columns

    @property
    def image_length(self) -> int:
        """Number of tokens that an input image takes in the language model: latents and buffers."""
        return self.tokens + self.mar.buffers


def _resolution(given: Any) -> int | tuple[int, int]:
    if type(given) is int:
        return given
    if isinstance(given, list | tuple) and [type(side) for side in given] == [int, int]:
        return given[0], given[1]
    raise ValueError(
        f"network.resolution is {given!r}; give whole pixels: one side, or [height, width]"
    )


@dataclass(frozen=True)
class HarmonOptions:
    """Training options; the defaults are the published recipe (harmon.md e, g).

    `text_dropout`: share of generation samples whose text becomes "Generate an image."; `dropout_hides_image`: such a
    RecA sample also loses its image (in the published recipe it keeps it). `condition_gradient`: factor on the gradient
    into the understanding embeddings. `frozen_condition`: RecA uses cached embeddings, which is a different algorithm.
    `leading_newline`: RecA prompts start with a newline, and the image follows it. `drawing`: how an image becomes
    square for generation: stretched (RecA), cropped or padded. `max_text`: tokens of a conversation before the image
    is inserted. `encode_batch`: images per pass of the VAE. `implementation` of the answer loss: see `reca_kernels`.
    """

    text_dropout: float = 0.1
    dropout_hides_image: bool = False
    condition_gradient: float = 0.1
    frozen_condition: bool = False
    leading_newline: bool = True
    drawing: Drawing = "stretch"
    max_text: int = 1472
    encode_batch: int = 16
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        where = "network.options"
        common.check_shares(where, vars(self), "text_dropout")
        common.check_positive(where, vars(self), "max_text", "encode_batch")
        if self.condition_gradient < 0:
            raise ValueError(
                f"{where}.condition_gradient is {self.condition_gradient}; it must not be negative"
            )


def parse(network: Mapping[str, Any]) -> tuple[HarmonConfig, HarmonOptions]:
    """Parse a `network` section: the keys of `HarmonConfig`, and `options` with those of `HarmonOptions`.

    ValueError names an unknown key or invalid value.
    """
    return common.parse(network, HarmonConfig, HarmonOptions)
