"""Configuration of a Harmon: language model, masked autoencoder (MAR), VAE; converted from and to plain data.

Source: docs/reference/harmon.md a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len
from reca_kernels import Implementation

from reca.core.structure import Count, NonNegative, Positive, Share
from reca.models.common import options as common

TRAIN_STEPS = 1000  # of the diffusion process; sampling uses a subset


@dataclass(frozen=True)
class LanguageConfig:
    """Numbers of the language model, named as in transformers' Qwen2Config; the defaults are Qwen2.5-0.5B's."""

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    vocab_size: int = 151936
    max_position_embeddings: int = 32768
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


QWEN2_5: dict[str, Any] = asdict(LanguageConfig())

Dropout = Annotated[float, Interval(ge=0, lt=1)]
Drawing = Literal["stretch", "crop", "pad"]
"""How an image becomes square for generation."""


@dataclass(frozen=True)
class MarConfig:
    """The masked autoencoder and its diffusion head; the defaults are MAR-base (Harmon-0.5B).

    `buffers` S leading buffer tokens; `table` side of the learned position grids, resized to the image's grid;
    `patch` side of the square of latents that is one token; `min_mask_rate` and `mask_spread` of the training mask;
    `repeats` noise samples per token and step; `sampling_steps` of the reverse diffusion. `noise_schedule`: Harmon's is
    cosine, which multiplies the head's error near pure noise by hundreds; `linear` (Ho et al. 2020) tolerates a small
    head. `initializer_range`: standard deviation of the position tables and learned tokens of an untrained network.
    `attention_dropout` and `dropout` apply in training only, seeded.
    """

    encoder_width: Count = 768
    encoder_depth: Count = 12
    encoder_heads: Count = 12
    decoder_width: Count = 768
    decoder_depth: Count = 12
    decoder_heads: Count = 12
    mlp_ratio: Positive = 4.0
    latent_channels: Count = 16
    patch: Count = 1
    buffers: Count = 64
    table: Count = 16
    classes: Count = 1000
    attention_dropout: Dropout = 0.1
    dropout: Dropout = 0.1
    min_mask_rate: Annotated[float, Interval(gt=0, lt=1)] = 0.7
    mask_spread: Positive = 0.25
    head_depth: Count = 6
    head_width: Count = 1024
    repeats: Count = 4
    sampling_steps: Annotated[int, Interval(ge=2, le=TRAIN_STEPS)] = 100
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    initializer_range: Positive = 0.02

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            width, heads = getattr(self, f"{name}_width"), getattr(self, f"{name}_heads")
            at = f"network.mar.{name}"
            common.check_heads((f"{at}_heads", heads), (f"{at}_width", width))
            if self.mlp_ratio * width < 1:
                raise ValueError(
                    f"network.mar.mlp_ratio is {self.mlp_ratio}; it must leave one value of {width}"
                )

    @property
    def token_channels(self) -> int:
        """Values of one token: the latents of its patch."""
        return self.latent_channels * self.patch**2


@dataclass(frozen=True)
class VaeConfig:
    """The KL autoencoder (frozen): base width, multipliers of its levels, and the scale of its latents."""

    width: Count = 128
    multipliers: Annotated[tuple[Count, ...], Len(1)] = (1, 1, 2, 2, 4)
    resnets: Count = 2
    groups: Count = 32
    scale: Positive = 0.2325

    def __post_init__(self) -> None:
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

    `llm` holds fields of LanguageConfig. `resolution` is the side of a picture in pixels, or [height, width].
    `end` is the id of `<|im_end|>`, which ends an answer and pads a batch.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(QWEN2_5))
    mar: MarConfig = field(default_factory=MarConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    resolution: int | tuple[int, int] = 512
    end: int = 151645

    def __post_init__(self) -> None:
        common.check_numbers("network.llm", self.llm, QWEN2_5)
        common.check_attention("network.llm", QWEN2_5 | self.llm, rotary=True)
        for side in self.size:
            if side < self.pixels_per_token or side % self.pixels_per_token:
                raise ValueError(
                    f"network.resolution {self.resolution} is not a multiple of {self.pixels_per_token} pixels, "
                    "which a token has (the VAE's pixels per latent times network.mar.patch); change one of them"
                )
        if not 0 <= self.end < self.llm_value("vocab_size"):
            raise ValueError(
                f"network.end {self.end} is not a text id; give one of 0..{self.llm_value('vocab_size') - 1}"
            )

    # ---- derived sizes --------------------------------------------------------------------------
    @property
    def language(self) -> LanguageConfig:
        """The language model's numbers: those of the released 0.5B one where not given.

        But for `rope_theta`, which is Qwen2Config's 10,000 then, as models trained so far without it have it.
        """
        return LanguageConfig(**{"rope_theta": 10000.0, **self.llm})

    def llm_value(self, name: str) -> Any:
        """A value of the language model's configuration; the default is that of the released 0.5B model."""
        return self.llm.get(name, QWEN2_5[name])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side

    @property
    def pixels_per_token(self) -> int:
        """Pixels of a token along a side."""
        return self.vae.factor * self.mar.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.size
        return height // self.pixels_per_token, width // self.pixels_per_token

    @property
    def tokens(self) -> int:
        """Number of tokens per image, L."""
        rows, columns = self.grid
        return rows * columns

    @property
    def image_length(self) -> int:
        """Number of tokens that an input image takes in the language model: image tokens and buffers."""
        return self.tokens + self.mar.buffers


@dataclass(frozen=True)
class HarmonOptions:
    """Training options; the defaults are the published recipe (harmon.md e, g).

    `text_dropout`: share of generation samples whose text becomes "Generate an image."; `dropout_hides_image`: such a
    RecA sample also loses its image (in the published recipe it keeps it). `condition_gradient`: factor on the gradient
    into the understanding embeddings. `frozen_condition`: RecA uses cached embeddings, which is a different algorithm.
    `leading_newline`: RecA prompts start with a newline, and the image follows it. `drawing`: how an image becomes
    square for generation: stretched (RecA), cropped or padded. `max_text`: tokens of a conversation before the image
    is inserted. `encode_batch`: images per pass of the VAE. `unpadded`: the language model skips padding, which affects
    only the cost. `implementation` of the answer loss and of attention without padding: see `reca_kernels`.
    """

    text_dropout: Share = 0.1
    dropout_hides_image: bool = False
    condition_gradient: NonNegative = 0.1
    frozen_condition: bool = False
    leading_newline: bool = True
    drawing: Drawing = "stretch"
    max_text: Count = 1472
    encode_batch: Count = 16
    unpadded: bool = True
    implementation: Implementation = "auto"


def parse(network: Mapping[str, Any]) -> tuple[HarmonConfig, HarmonOptions]:
    """Parse a `network` section: the keys of `HarmonConfig`, and `options` with those of `HarmonOptions`.

    ValueError names an unknown key or invalid value.
    """
    return common.parse(network, HarmonConfig, HarmonOptions)
