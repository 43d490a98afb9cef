"""OpenUni's text front end: Qwen's chat wording without a system message, `<img>` as the start of generation.

Source: docs/reference/openuni.md a7 and b2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reca.models.common import tokenizer as common
from reca.models.common.tokenizer import IGNORE, without_image_tag
from reca.models.openuni.config import HEAD_TOKENS, OpenUniConfig

MARKS = {
    "image_start": "<img>",
    "image_end": "</img>",
    "image": "<IMG_CONTEXT>",
    "end": "<|im_end|>",
}
END = MARKS["end"]
KEEP = "Keep the image as it is."
_OPEN = "<|im_start|>user\n"
_CLOSE = f"{END}\n<|im_start|>assistant\n"
_START = MARKS["image_start"]
_UNCONDITIONAL = "Generate an image."
_IMAGE = f"{_START}{MARKS['image_end']}\n"  # its tokens are put in as ids


class TextFrontEnd(common.TextFrontEnd):
    """Turns prompts, questions and conversations into ids; an image is its placeholder ids between two marks."""

    config: OpenUniConfig

    def __init__(self, tokenizer: Any, config: OpenUniConfig, where: str = "tokenizer") -> None:
        self.end = config.special.end
        super().__init__(tokenizer, config, where)

    def check(self, where: str) -> None:
        """ValueError unless the marks' ids and the header's length are those that the network counts on."""
        special, most = self.config.special, self.config.llm.vocab_size
        wanted = {mark: getattr(special, name) for name, mark in MARKS.items()}
        wrong = {m: i for m, i in wanted.items() if self.tokenizer.convert_tokens_to_ids(m) != i}
        header = len(self.tokenizer(f"{_CLOSE}{_START}", add_special_tokens=False)["input_ids"])
        if wrong or len(self.tokenizer) > most or header != HEAD_TOKENS:
            raise ValueError(
                f"{where}: the tokenizer has {len(self.tokenizer)} entries and an assistant header of {header} tokens, "
                f"this OpenUni needs {wrong or wanted} in at most {most}, and {HEAD_TOKENS} tokens; give the tokenizer "
                "that this model was trained with"
            )

    # ---- generation ------------------------------------------------------------------------------
    def caption(self, text: str) -> list[int]:
        """The text-to-image instruction."""
        return self._instruction(f"Generate an image: {text.strip()}", _START)

    def unconditional(self) -> list[int]:
        """The instruction without a caption."""
        return self._instruction(_UNCONDITIONAL, _START)

    def reconstruction(self, prompt: str = KEEP) -> list[int]:
        """The instruction to generate the image that it shows; by default the one that guidance pushes away from."""
        return self._instruction(f"{_IMAGE}{prompt}", _START)

    # ---- reading ---------------------------------------------------------------------------------
    def question(self, text: str, images: int = 1, system: str = "") -> list[int]:
        """The instruction of a question after `images` images, and after a `system` message where it is not empty."""
        before = f"<|im_start|>system\n{system}{END}\n" if system else ""
        return self._filled(f"{before}{_OPEN}{_IMAGE * images}{text}{_CLOSE}")

    def conversation(
        self, turns: Sequence[tuple[str, str]], with_image: bool, system: str = ""
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of all turns; labels on answers and their end, not on the newline after it."""
        ids: list[int] = []
        labels: list[int] = []
        newline = self.ids(["\n"])[0]
        for number, (question, answer) in enumerate(turns):
            first = number == 0
            shown = int(with_image and first)
            asked = self.question(without_image_tag(question), shown, system if first else "")
            said = self.ids([f"{answer}{END}"])[0]
            ids += [*asked, *said, *newline]
            labels += [IGNORE] * len(asked) + said + [IGNORE] * len(newline)
        return ids, labels

    # ---- ids -------------------------------------------------------------------------------------
    def _instruction(self, text: str, start: str) -> list[int]:
        return self._filled(f"{_OPEN}{text}{_CLOSE}{start}")

    def _filled(self, text: str) -> list[int]:
        """Ids with the placeholders of each image, which stands where its two marks follow each other."""
        special, found = self.config.special, list[int]()
        for token in self.ids([text])[0]:
            if token == special.image_end:
                found += [special.image] * self.config.vit.tokens
            found.append(token)
        return found
