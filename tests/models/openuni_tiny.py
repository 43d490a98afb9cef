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
from tests.models import tiny_sizes
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
    own = {
        "llm": {"vocab_size": len(_FILES), "initializer_range": 0.2},
        "vit": {"initializer_range": 0.2},
        "special": IDS,
        "options": options,
    }
    return tiny_sizes.network("openuni", own)


def model(folder: str | Path, **options: Any) -> OpenUniModel:
    return of_network(folder, network(**options), _FILES)


def of_network(folder: str | Path, described: dict[str, Any], files: Any) -> OpenUniModel:
    """The model of a `network` section, with the tokenizer `files` in `folder`."""
    torch.manual_seed(0)
    built = build_model("openuni", described)
    files.save_pretrained(str(folder))
    built.set_tokenizer(read_tokenizer(Path(folder)))
    assert isinstance(built, OpenUniModel)
    return built.eval()
