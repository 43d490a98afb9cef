"""BAGEL's text: plain ids without a chat template, between markers from the vocabulary.

Source: docs/reference/bagel.md 1 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from reca.models.bagel.config import BagelConfig
from reca.models.bagel.layout import framed
from reca.models.common import tokenizer as common
from reca.models.common.tokenizer import IGNORE

MARKS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
THINK_TO_DRAW = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
    "image here"
)


class TextFrontEnd(common.TextFrontEnd):
    """Encodes and decodes plain ids; the markers around them are set in the configuration."""

    config: BagelConfig

    @property
    def end(self) -> int:  # type: ignore[override]
        """EOS."""
        return self.config.special.eos

    def check(self, where: str) -> None:
        """Raise ValueError unless the tokenizer has the network's marker ids."""
        special, most = self.config.special, self.config.llm.vocab_size
        expected = {mark: getattr(special, name) for name, mark in MARKS.items()}
        mismatched = {
            m: i for m, i in expected.items() if self.tokenizer.convert_tokens_to_ids(m) != i
        }
        if mismatched or len(self.tokenizer) > most:
            raise ValueError(
                f"{where}: the tokenizer has {len(self.tokenizer)} entries, this BAGEL needs "
                f"{mismatched or expected} in at most {most}; use the tokenizer that this model was trained with"
            )

    def conversation(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and labels of (question, answer) turns: each text is BOS ids EOS, an answer predicts its ids and EOS."""
        special, ids, labels = self.config.special, list[int](), list[int]()
        for number, text in enumerate(self.ids([text for turn in turns for text in turn])):
            ids += framed(text, special)
            answer = [*text, special.eos, IGNORE]
            labels += answer if number % 2 else [IGNORE] * len(answer)
        return ids, labels
