"""Janus-Pro's text front end: chat template, RecA prompts, and labels of conversations.

Source: docs/reference/janus.md a (special ids), b (templates) and e (RecA prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reca.models.common import tokenizer as common
from reca.models.common.tokenizer import IGNORE, without_image_tag
from reca.models.janus.layout import IMAGE

PAD, BEGIN, END = "<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>"  # noqa: RUF001
_USER, _ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; `boi` and `eoi` enclose an image."""

    bos: int
    eos: int
    pad: int
    boi: int
    eoi: int


class TextFrontEnd(common.TextFrontEnd):
    """Converts prompts, questions and conversations to ids, in which `IMAGE` is the placeholder of an input image."""

    special: SpecialIds

    def __init__(self, tokenizer: Any, config: Any, where: str = "tokenizer") -> None:
        super().__init__(tokenizer, config, where)
        self.end = self.special.eos

    def check(self, where: str) -> None:
        """Look up the special ids by their text, as the released ids are unconfirmed; ValueError if one is missing."""
        known, size = self.tokenizer.get_vocab(), int(self.config.llm["vocab_size"])
        special = {"bos": self.tokenizer.bos_token_id, "eos": self.tokenizer.eos_token_id}
        special |= {"pad": known.get(PAD), "boi": known.get(BEGIN), "eoi": known.get(END)}
        if missing := [name for name, token in special.items() if token is None]:
            raise ValueError(
                f"{where}: the tokenizer has no {', '.join(missing)} token (pad {PAD}, boi {BEGIN}, eoi {END}); "
                "give the tokenizer that this Janus-Pro was trained with"
            )
        if max(known.values()) >= size:
            raise ValueError(
                f"{where}: the tokenizer has ids up to {max(known.values())}, but network.llm.vocab_size is {size}; "
                "give the tokenizer that this Janus-Pro was trained with"
            )
        self.special = SpecialIds(**special)

    # ---- generation ----------------------------------------------------------------------------------
    def caption(self, text: str) -> list[int]:
        """The text-to-image prompt of a caption, from BOS to begin-of-image."""
        return self._prompt(self._ids(f"{_USER}{text.strip()}{_ASSISTANT}"))

    def reconstruction(self, prompt: str) -> list[int]:
        """The RecA prompt with the image, from BOS to begin-of-image (janus.md e)."""
        return self._prompt(self._about_image(prompt))

    def unconditional(self) -> list[int]:
        """The shortest prompt without a condition: BOS and begin-of-image."""
        return self._prompt([])

    # ---- understanding -------------------------------------------------------------------------------
    def question(self, text: str, with_image: bool = True) -> list[int]:
        """The system prompt and a question, with or without an image."""
        return [self.special.bos, *self._system(), *self._turn(text, with_image)]

    def conversation(
        self, turns: Sequence[tuple[str, str]], with_image: bool
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of the system prompt and all turns; only answers and their EOS have labels."""
        ids = [self.special.bos, *self._system()]
        labels = [IGNORE] * len(ids)
        for number, (question, answer) in enumerate(turns):
            asked = self._turn(without_image_tag(question), with_image and number == 0)
            reply = [*self._ids(f" {answer}"), self.special.eos]
            ids += [*asked, *reply]
            labels += [IGNORE] * len(asked) + reply
        return ids, labels

    # ---- ids -----------------------------------------------------------------------------------------
    def _prompt(self, body: Sequence[int]) -> list[int]:
        return [self.special.bos, *body, self.special.boi]

    def _system(self) -> list[int]:
        prompt = self.config.system_prompt
        return self._ids(f"{prompt}\n\n") if prompt else []

    def _turn(self, text: str, with_image: bool) -> list[int]:
        return self._about_image(text) if with_image else self._ids(f"{_USER}{text}{_ASSISTANT}")

    def _about_image(self, text: str) -> list[int]:
        image = [self.special.boi, IMAGE, self.special.eoi]
        return [*self._ids(_USER), *image, *self._ids(f"\n{text}{_ASSISTANT}")]

    def _ids(self, text: str) -> list[int]:
        return self.ids([text])[0]
