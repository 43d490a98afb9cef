"""BAGEL's text: plain ids without a chat template, between markers that the vocabulary already holds.

Source: docs/reference/bagel.md 1 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.models.bagel.config import BagelConfig
from reca.models.common.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
UNKNOWN = "<unk>"  # of word-level vocabularies; byte-level ones need none
THINK_TO_DRAW = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
    "image here"
)
THINK_TO_ANSWER = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
    "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
    "answer here"
)


def load_tokenizer(folder: Path, config: BagelConfig) -> PreTrainedTokenizerFast:
    """Read a tokenizer folder; ValueError when its markers do not have the network's ids."""
    tokenizer: Any = read_tokenizer(folder)
    check_vocabulary(tokenizer, config, str(folder))
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: BagelConfig, where: str) -> None:
    """ValueError unless the markers' ids are those that the network counts on."""
    wanted = {mark: getattr(config.special, name) for name, mark in MARKS.items()}
    wrong = {m: i for m, i in wanted.items() if tokenizer.convert_tokens_to_ids(m) != i}
    if wrong or len(tokenizer) > config.llm.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {len(tokenizer)} entries, this BAGEL needs {wrong or wanted} in at most "
            f"{config.llm.vocab_size}; give the tokenizer that this model was trained with"
        )


class TextFrontEnd:
    """Texts to plain ids and back."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: BagelConfig) -> None:
        check_vocabulary(tokenizer, config, "tokenizer")
        self.tokenizer, self.special = tokenizer, config.special
        self._unknown = tokenizer.get_vocab().get(UNKNOWN)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens; ValueError on a word that a word-level vocabulary lacks."""
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if self._unknown in row:
                raise ValueError(f"{text!r}: this model's closed vocabulary lacks a word of it")
        return [list(row) for row in rows]

    def decoded(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first EOS."""
        ids = list(ids)
        ids = ids[: ids.index(self.special.eos)] if self.special.eos in ids else ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
