"""Harmon's configurations as golden cases and released checkpoints state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from reca.core.structure import build
from reca.models.harmon.config import QWEN2_5, HarmonConfig, MarConfig, VaeConfig

_QWEN_FIXED = {"tie_word_embeddings": True, "use_sliding_window": False, "hidden_act": "silu"}
_MAR_FIXED = {"patch_size": 1}
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


def config_of(described: Mapping[str, Any]) -> HarmonConfig:
    """A `network` section without options."""
    return build(HarmonConfig, described, "network")


def released(size: Literal["0.5b", "1.5b"]) -> HarmonConfig:
    """The released model of this size (harmon.md a)."""
    if size == "0.5b":
        return HarmonConfig()
    llm = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 2}
    mar: dict[str, Any] = {
        f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in _HUGE.items()
    }
    mar |= {"head_depth": 12, "head_width": 1536}
    return HarmonConfig(llm={**QWEN2_5, **llm, **heads}, mar=MarConfig(**mar))


def golden_config(config: Mapping[str, Any]) -> HarmonConfig:
    """Read the `config` of a golden case; ValueError where it fixes something that Harmon never changes."""
    llm, mar = dict(config["llm"]), dict(config["mar"])
    for given, fixed in ((llm, _QWEN_FIXED), (mar, _MAR_FIXED)):
        for name, value in fixed.items():
            if given.pop(name, value) != value:
                raise ValueError(f"{name} must be {value!r} for Harmon")
    side = mar.pop("img_size") // mar.pop("vae_stride")
    named = {ours: mar.pop(theirs) for theirs, ours in _GOLDEN.items() if theirs in mar}
    named["sampling_steps"] = int(named["sampling_steps"])
    if mar:
        raise ValueError(f"mar: unknown key {', '.join(mar)}")
    return HarmonConfig(
        llm=llm,
        mar=MarConfig(table=side, **named),
        vae=VaeConfig(multipliers=tuple(config["vae"]["ch_mult"]), scale=config["vae_scale"]),
        resolution=tuple(config["image_hw"]),
        end=config["pad_id"],
    )
