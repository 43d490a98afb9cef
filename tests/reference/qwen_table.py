"""A stand-in for Qwen2.5's tokenizer, made from a golden case: its pre-tokeniser, and a table of pieces.

No Qwen vocabulary is at hand offline. The case gives texts with their ids; Qwen's pre-tokeniser splits the texts,
and each split piece is matched with its ids. So templates, splits and every placement are checked, byte-pair
merges inside a word are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Qwen2.5's pattern in the syntax of `re`: contractions, words with the sign or blank before them, single digits,
# punctuation with trailing newlines, newlines with the blanks before them, blanks.
LETTER = r"[^\W\d_]"
PIECES = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|'(?:[sdmt]|ll|ve|re)"
    rf"|(?:[^\r\n\w]|_)?{LETTER}+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.IGNORECASE,
)
SPECIAL = {"<|im_start|>", "<|im_end|>"}


def split(text: str) -> list[str]:
    """The pieces of a text; those of a special token stand alone."""
    pieces: list[str] = []
    for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
        pieces += [part] if part in SPECIAL else PIECES.findall(part)
    return pieces


class Table:
    """Ids by piece; answers like a tokenizer of transformers."""

    def __init__(self) -> None:
        self.ids: dict[str, tuple[int, ...]] = {}

    def learn(self, text: str, ids: Sequence[int]) -> None:
        """Match the pieces of a text with its ids; one piece may be several ids, the rest one each or known."""
        pieces, ids = split(text), list(ids)
        known = sum(len(self.ids.get(piece, (0,))) for piece in pieces)
        spare = len(ids) - known
        unknown = [piece for piece in pieces if piece not in self.ids]
        assert spare == 0 or len(unknown) == 1, f"ambiguous: {text!r}"
        at = 0
        for piece in pieces:
            length = len(self.ids.get(piece, (0,))) + (spare if piece in unknown else 0)
            found = tuple(ids[at : at + length])
            assert self.ids.setdefault(piece, found) == found, f"{piece!r} has two meanings"
            at += length
        assert at == len(ids)

    def get_vocab(self) -> dict[str, int]:
        """Empty: no piece stands for unknown words."""
        return {}

    def __call__(self, texts: Sequence[str], **ignored: Any) -> dict[str, list[Any]]:
        ids = [[token for piece in split(text) for token in self.ids[piece]] for text in texts]
        return {"input_ids": ids, "offset_mapping": [[(0, 0)] * len(row) for row in ids]}
