"""Tokenizers of scale tiny: the files that the loopback hub serves (tests/hub/vocabularies.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hub import vocabularies
from tests.hub.vocabularies import Files

NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BY_FAMILY: dict[str, Callable[..., Files]] = {
    "showo": vocabularies.phi,
    "bagel": vocabularies.qwen,
    "harmon": vocabularies.qwen,
    "openuni": partial(vocabularies.qwen, more=vocabularies.INTERNVL),
    "janus": vocabularies.deepseek,
}


@dataclass(frozen=True)
class TokenizerFiles:
    """Files in place of a tokenizer that writes them."""

    files: Files

    def save_pretrained(self, folder: str) -> None:
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)


def tokenizer_files(family: str) -> TokenizerFiles:
    """The tokenizer of a family's tiny network."""
    return TokenizerFiles(BY_FAMILY[family](NAMES, scale="tiny"))
