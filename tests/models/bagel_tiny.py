"""A BAGEL smaller than the laptop's, with random weights and a closed vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reca.models.bagel.model import BagelModel
from reca.models.bagel.text import MARKS
from reca.models.common.tokenizer import read_tokenizer
from reca.models.registry import build_model
from tests.models import tiny_sizes
from tests.models.showo_tiny import WORDS, pictures, tokenizer_files

__all__ = ["WORDS", "model", "network", "pictures"]
FIRST = len(WORDS) + 2  # the words, <unk>, <|endoftext|>, then the markers


def network(**options: Any) -> dict[str, Any]:
    """The `network` section: 16 pixels, 4 ViT patches, 2 x 2 latent tokens of 16 values."""
    own = {
        "llm": {"vocab_size": FIRST + len(MARKS)},
        "special": {name: FIRST + i for i, name in enumerate(MARKS)},
        "options": options,
    }
    return tiny_sizes.network("bagel", own)


def model(folder: str | Path, **options: Any) -> BagelModel:
    files = tokenizer_files()
    files.add_special_tokens({"additional_special_tokens": list(MARKS.values())})
    return of_network(folder, network(**options), files)


def of_network(folder: str | Path, described: dict[str, Any], files: Any) -> BagelModel:
    """The model of a `network` section, with the tokenizer `files` in `folder`."""
    torch.manual_seed(0)
    built = build_model("bagel", described)
    files.save_pretrained(str(folder))
    built.set_tokenizer(read_tokenizer(Path(folder)))
    assert isinstance(built, BagelModel)
    return built.eval()
