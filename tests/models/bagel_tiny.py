"""A BAGEL smaller than the laptop's, with random weights and a closed vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from reca.models.bagel.model import BagelModel
from reca.models.bagel.text import MARKS, load_tokenizer
from reca.models.registry import build_model
from tests.models.showo_tiny import WORDS, pictures, tokenizer_files

__all__ = ["WORDS", "model", "network", "pictures"]
FIRST = len(WORDS) + 2  # the words, <unk>, <|endoftext|>, then the markers


def network(**options: Any) -> dict[str, Any]:
    """The `network` section: 16 pixels, 4 ViT patches, 2 x 2 latent tokens of 16 values."""
    size = {"most": 16, "least": 16}
    return {
        "resolution": 16,
        "condition_resolution": 16,
        "max_latent_size": 4,
        "vit_max_num_patch_per_side": 4,
        "vae_size": size,
        "read_size": size,
        "edit_size": size,
        "llm": {
            "vocab_size": FIRST + len(MARKS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vit": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "vae": {
            "ch": 8,
            "ch_mult": [1, 1, 1],
            "num_res_blocks": 1,
            "z_channels": 4,
            "norm_groups": 4,
        },
        "special": {name: FIRST + i for i, name in enumerate(MARKS)},
        "options": options,
    }


def model(folder: object, **options: Any) -> BagelModel:
    torch.manual_seed(0)
    built = build_model("bagel", network(**options))
    files = tokenizer_files()
    files.add_special_tokens({"additional_special_tokens": list(MARKS.values())})
    files.save_pretrained(str(folder))
    built.set_tokenizer(load_tokenizer(folder, built.config))
    assert isinstance(built, BagelModel)
    return built.eval()
