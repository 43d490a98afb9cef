"""Tokenizers of scale tiny: the files that the loopback hub serves (tests/hub/vocabularies.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.hub.vocabularies import TOKENIZERS, Files


@dataclass(frozen=True)
class TokenizerFiles:
    """Files in place of a tokenizer that writes them."""

    files: Files

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)


def tokenizer_files(family: str) -> TokenizerFiles:
    """The tokenizer of a family's tiny network."""
    return TokenizerFiles(TOKENIZERS[family]("tiny"))
