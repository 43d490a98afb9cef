"""Show-o's configurations as golden cases and released checkpoints state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from reca.core.structure import build
from reca.models.showo.config import CLIP_LARGE_336, PHI_1_5, ShowoConfig

# what the architecture fixes; a case may repeat these but not change them
_PHI_FIXED = {"model_type": "phi", "qk_layernorm": True, "tie_word_embeddings": False}


def config_of(described: Mapping[str, Any]) -> ShowoConfig:
    """A `network` section without options."""
    return build(ShowoConfig, described, "network")


def released(understanding: Literal["clip", "vq"], resolution: int = 256) -> ShowoConfig:
    """The released model of this variant (showo.md 1): show-o[-w-clip-vit][-512x512]."""
    if understanding == "vq":
        return ShowoConfig(resolution=resolution)
    return ShowoConfig(
        resolution=resolution,
        understanding="clip",
        clip_vision=dict(CLIP_LARGE_336),
        projector=(
            CLIP_LARGE_336["hidden_size"],
            PHI_1_5["hidden_size"],
            PHI_1_5["hidden_size"],
        ),
    )


def golden_config(config: Mapping[str, Any], **options: Any) -> ShowoConfig:
    """Read the `config` of a golden case; `options` are further fields (e.g. `max_text`).

    ValueError where the case states a size or an id that our rules would not give: the golden
    data decides that a rule is wrong.
    """
    llm = dict(config["llm"])
    stated = {"vocab_size": llm.pop("vocab_size")}
    for name, value in _PHI_FIXED.items():
        if llm.pop(name, value) != value:
            raise ValueError(f"llm.{name} must be {value!r} for Show-o")
    ours = config_of(
        {
            "llm": llm,
            "vq": config["vq"],
            "resolution": config["resolution"],
            "llm_vocab_size": config["llm_vocab_size"],
            "endoftext": config["ids"]["eos"],
            "understanding": "clip" if "mm_projector" in config else "vq",
            "clip_vision": config.get("clip_vision"),
            "projector": config.get("mm_projector", ()),
            **options,
        }
    )
    stated |= {name: config[name] for name in ("num_vq_tokens", "codebook_size", "ids")}
    derived = {name: getattr(ours, name) for name in stated} | {"ids": asdict(ours.ids)}
    if derived != stated:
        raise ValueError(f"the case states {stated}, but Show-o's rules give {derived}")
    return ours
