"""Harmon's text front end: Qwen's chat template without a system message, and labels for conversations.

Source: docs/reference/harmon.md a (templates) and e (RecA prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reca.models.common import tokenizer as common
from reca.models.common.tokenizer import IGNORE, without_image_tag
from reca.models.harmon.layout import IMAGE, IMAGE_AT

END = "<|im_end|>"
_OPEN = "<|im_start|>user\n"
_CLOSE = f"{END}\n<|im_start|>assistant\n"
_UNCONDITIONAL = "Generate an image."


class TextFrontEnd(common.TextFrontEnd):
    """Converts prompts, questions and conversations to ids; `IMAGE` marks the position of an image."""

    def __init__(self, tokenizer: Any, config: Any, where: str = "tokenizer") -> None:
        self.end = config.end
        super().__init__(tokenizer, config, where)

    def check(self, where: str) -> None:
        """Raise ValueError unless `<|im_end|>` has the id `end` and a prompt starts with exactly three tokens."""
        opening, closing = self.tokenizer([_OPEN, END], add_special_tokens=False)["input_ids"]
        if closing != [self.end] or len(opening) != IMAGE_AT:
            raise ValueError(
                f"{where}: {END} is {closing}, this Harmon needs [{self.end}], and a prompt starts with {len(opening)} "
                f"tokens, not {IMAGE_AT}; use the tokenizer that this model was trained with"
            )

    # ---- generation -------------------------------------------------------------------------------
    def caption(self, text: str) -> list[int]:
        """The text-to-image instruction."""
        return self._instruction(f"Generate an image: {text.strip()}")

    def unconditional(self, with_image: bool = False) -> list[int]:
        """The instruction without a caption; `with_image`: RecA's, which keeps its image when the text is dropped."""
        ids = self._instruction(_UNCONDITIONAL)
        return _with_image(ids) if with_image else ids

    def reconstruction(self, prompt: str, leading_newline: bool = True) -> list[int]:
        """The RecA instruction; as published it starts with a newline, so the image follows a double newline."""
        return _with_image(self._instruction(f"\n{prompt}" if leading_newline else prompt))

    # ---- understanding-----------------------------------------------------------------------------
    def question(self, text: str, with_image: bool = True) -> list[int]:
        """The instruction of a question, with or without an image before it."""
        if not with_image:
            return self._instruction(text)
        return [*self._ids(_OPEN), IMAGE, *self._ids(f"\n{text}{_CLOSE}")]

    def conversation(
        self, turns: Sequence[tuple[str, str]], with_image: bool
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of all turns; labels on answers and their end token, not on the newline after it."""
        ids: list[int] = []
        labels: list[int] = []
        newline = self._ids("\n")
        for number, (question, answer) in enumerate(turns):
            question_ids = self.question(without_image_tag(question), with_image and number == 0)
            answer_ids = self._ids(f"{answer}{END}")
            ids += [*question_ids, *answer_ids, *newline]
            labels += [IGNORE] * len(question_ids) + answer_ids + [IGNORE] * len(newline)
        return ids, labels

    # ---- ids --------------------------------------------------------------------------------------
    def _instruction(self, text: str) -> list[int]:
        return self._ids(f"{_OPEN}{text}{_CLOSE}")

    def _ids(self, text: str) -> list[int]:
        return self.ids([text])[0]


def _with_image(ids: list[int]) -> list[int]:
    return [*ids[:IMAGE_AT], IMAGE, *ids[IMAGE_AT:]]
