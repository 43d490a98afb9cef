"""An OpenUni smaller than the laptop's, with random weights and a closed vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reca.models.common.tokenizer import read_tokenizer
from reca.models.openuni.model import OpenUniModel
from reca.models.openuni.text import KEEP, MARKS
from reca.models.registry import build_model
from reca.toyworld.pretrain.words import build_chat_tokenizer
from tests.models.showo_tiny import WORDS, pictures

__all__ = ["END", "WORDS", "model", "network", "pictures"]
TEXTS = [*WORDS, "generate an image :", KEEP.lower(), "system"]


def tokenizer() -> Any:
    """The words and marks of the templates."""
    files = build_chat_tokenizer(TEXTS)
    images = [mark for name, mark in MARKS.items() if name.startswith("image")]
    files.add_special_tokens({"additional_special_tokens": images})
    return files


_FILES = tokenizer()
IDS = {name: _FILES.convert_tokens_to_ids(mark) for name, mark in MARKS.items()}
END = IDS["end"]


def network(**options: Any) -> dict[str, Any]:
    """The `network` section: 16 pixels, one token of the reader from 2 x 2 patches, 4 queries, 4 x 4 latents."""
    return {
        "resolution": 16,
        "queries": 4,
        "llm": {
            "vocab_size": len(_FILES),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
        },
        "vit": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "initializer_range": 0.2,
        },
        "connector": {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
        "sana": {
            "num_layers": 2,
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "caption_channels": 32,
        },
        "vae": {
            "latent_channels": 4,
            "attention_head_dim": 8,
            "channels": [8, 8, 16],
            "encoder_layers": [1, 1, 1],
            "decoder_layers": [1, 1, 1],
            "residual": 2,
        },
        "special": IDS,
        "options": options,
    }


def model(folder: str | Path, **options: Any) -> OpenUniModel:
    torch.manual_seed(0)
    built = build_model("openuni", network(**options))
    _FILES.save_pretrained(str(folder))
    built.set_tokenizer(read_tokenizer(Path(folder)))
    assert isinstance(built, OpenUniModel)
    return built.eval()
