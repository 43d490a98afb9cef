"""All numbers of a Harmon: language model, masked autoencoder (MAR), VAE; read from plain data, written back to it.

Source: docs/reference/harmon.md a. Released sizes are `HarmonConfig.released`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from reca.core import structure

TRAIN_STEPS = 1000  # of the diffusion process, of which sampling keeps some

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
_QWEN_FIXED = {"tie_word_embeddings": True, "use_sliding_window": False, "hidden_act": "silu"}
_MAR_FIXED = {"patch_size": 1}


@dataclass(frozen=True)
class MarConfig:
    """The masked autoencoder and its diffusion head; the defaults are MAR-base (Harmon-0.5B).

    `buffers` S leading buffer tokens; `table` side of the learned position grids, resized to the image's grid;
    `min_mask_rate` bounds the training mask; `repeats` noise draws per token and step; `sampling_steps` of the
    reverse diffusion. `noise_schedule`: Harmon's is cosine, which multiplies the head's error near pure noise by
    hundreds; `linear` (Ho et al. 2020) forgives a small head. `initializer_range`: deviation of the position tables and
    learned tokens of an untrained network. `attention_dropout` and `dropout` act in training only, by seeded draws.
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
        counts = (f.name for f in fields(self) if f.type == "int")  # annotations are texts here
        _positive(self, "network.mar", *counts)
        for name in ("encoder", "decoder"):
            width, heads = getattr(self, f"{name}_width"), getattr(self, f"{name}_heads")
            if width % heads:
                raise ValueError(
                    f"network.mar.{name}_width {width} does not divide into {heads} heads; change one"
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
        _positive(self, "network.mar", "initializer_range")
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
        _positive(self, "network.vae", "width", "resnets", "groups", "scale")
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
        """Pixels per latent and side: every level but the last halves the picture."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class HarmonConfig:
    """A whole Harmon; the defaults are Harmon-0.5B at 512 pixels.

    `llm` are keyword arguments of Qwen2Config. `resolution` is the side of a picture in pixels, or [height, width].
    `end` is the id of `<|im_end|>`, which ends an answer and pads a batch.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(QWEN2_5))
    mar: MarConfig = field(default_factory=MarConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    resolution: int | tuple[int, int] = 512
    end: int = 151645

    def __post_init__(self) -> None:
        self._check_llm()
        for side in self.size:
            if side < self.vae.factor or side % self.vae.factor:
                raise ValueError(
                    f"network.resolution {self.resolution} is not a multiple of the VAE's "
                    f"{self.vae.factor} pixels per latent; change one of them"
                )
        if not 0 <= self.end < self.llm_value("vocab_size"):
            raise ValueError(
                f"network.end {self.end} is no text id; give one of 0..{self.llm_value('vocab_size') - 1}"
            )

    def _check_llm(self) -> None:
        _refuse_unknown("network.llm", self.llm, QWEN2_5)
        for name, value in self.llm.items():
            number = "whole number" if isinstance(QWEN2_5[name], int) else "number"
            fits = type(value) is int or (number == "number" and type(value) is float)
            if not fits or value <= 0:
                raise ValueError(f"network.llm.{name} is {value!r}; it must be a {number} above 0")
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
        """A number of the language model, the released 0.5B one where not given."""
        return self.llm.get(name, QWEN2_5[name])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        height, width = self.size
        return height // self.vae.factor, width // self.vae.factor

    @property
    def tokens(self) -> int:
        """L: latents per picture."""
        rows, columns = self.grid
        return rows * columns

    @property
    def image_length(self) -> int:
        """Places that a picture which is read takes in the language model: latents and buffers."""
        return self.tokens + self.mar.buffers

    # ---- in and out -----------------------------------------------------------------------------
    @classmethod
    def released(cls, size: Literal["0.5b", "1.5b"]) -> HarmonConfig:
        """The released model of this size (harmon.md a)."""
        if size == "0.5b":
            return cls()
        llm = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        heads = {"num_attention_heads": 12, "num_key_value_heads": 2}
        mar: dict[str, Any] = {
            f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in _HUGE.items()
        }
        mar |= {"head_depth": 12, "head_width": 1536}
        return cls(llm={**QWEN2_5, **llm, **heads}, mar=MarConfig(**mar))

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> HarmonConfig:
        """Build from plain data (`network` in reca_model.json); ValueError names what is wrong."""
        values = _section("network", described)
        _refuse_unknown("network", values, {f.name for f in fields(cls)})
        for name, kind in (("mar", MarConfig), ("vae", VaeConfig)):
            if name in values:
                values[name] = structure.build(kind, values[name], f"network.{name}")
        if "llm" in values:
            values["llm"] = _section("network.llm", values["llm"])
        if "resolution" in values:
            values["resolution"] = _resolution(values["resolution"])
        if "end" in values and type(values["end"]) is not int:
            raise ValueError(f"network.end is {values['end']!r}; give the id of <|im_end|>")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back to an equal config (json-able)."""
        described = asdict(self)
        described["vae"]["multipliers"] = list(self.vae.multipliers)
        if not isinstance(self.resolution, int):
            described["resolution"] = list(self.resolution)
        return described

    @classmethod
    def from_golden(cls, config: Mapping[str, Any]) -> HarmonConfig:
        """Read the `config` of a golden case; ValueError where it fixes something that Harmon never changes."""
        llm, mar = dict(config["llm"]), dict(config["mar"])
        for given, fixed in ((llm, _QWEN_FIXED), (mar, _MAR_FIXED)):
            for name, value in fixed.items():
                if given.pop(name, value) != value:
                    raise ValueError(f"{name} must be {value!r} for Harmon")
        side = mar.pop("img_size") // mar.pop("vae_stride")
        named = {ours: mar.pop(theirs) for theirs, ours in _GOLDEN.items() if theirs in mar}
        named["sampling_steps"] = int(named["sampling_steps"])
        _refuse_unknown("mar", mar, ())
        return cls(
            llm=llm,
            mar=MarConfig(table=side, **named),
            vae=VaeConfig(multipliers=tuple(config["vae"]["ch_mult"]), scale=config["vae_scale"]),
            resolution=tuple(config["image_hw"]),
            end=config["pad_id"],
        )


_HUGE = {"width": 1280, "depth": 20, "heads": 16}
_GOLDEN = {
    "encoder_embed_dim": "encoder_width",
    "encoder_depth": "encoder_depth",
    "encoder_num_heads": "encoder_heads",
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "vae_embed_dim": "latent_channels",
    "mask_ratio_min": "min_mask_rate",
    "class_num": "classes",
    "attn_dropout": "attention_dropout",
    "proj_dropout": "dropout",
    "buffer_size": "buffers",
    "diffloss_d": "head_depth",
    "diffloss_w": "head_width",
    "num_sampling_steps": "sampling_steps",
    "diffusion_batch_mul": "repeats",
}


def _section(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; give a section, or leave it out")
    return dict(given)


def _resolution(given: Any) -> int | tuple[int, int]:
    if type(given) is int:
        return given
    if isinstance(given, list | tuple) and [type(side) for side in given] == [int, int]:
        return given[0], given[1]
    raise ValueError(
        f"network.resolution is {given!r}; give whole pixels: one side, or [height, width]"
    )


def _positive(config: Any, where: str, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}; it must be above 0")


def _refuse_unknown(where: str, given: Mapping[str, Any], known: Any) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
