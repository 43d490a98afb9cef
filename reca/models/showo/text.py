"""Show-o's text front end: templates for prompts and questions, and exact labels for conversations.

Source: docs/reference/showo.md 1.4, 3 (text encoding), 3.3 (conversations) and 5
(prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from reca.models.common import tokenizer as common
from reca.models.common.tokenizer import IGNORE, read_tokenizer, without_image_tag

ENDOFTEXT = "<|endoftext|>"
PAD_TOKEN = "[PAD]"
# In id order after [PAD]; ordinary added tokens, not special ones, as in the released vocabulary.
MARKS = tuple(
    f"<|{name}|>" for name in ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
)


class TextFrontEnd(common.TextFrontEnd):
    """Converts prompts, questions and conversations to ids; layouts do the rest."""

    def __init__(self, tokenizer: Any, config: Any, where: str = "tokenizer") -> None:
        self.special, self.understanding = config.ids, config.understanding
        self.end = self.special.eos
        super().__init__(tokenizer, config, where)

    @classmethod
    def read(cls, folder: str | Path, config: Any) -> Self:
        """The front end of a folder (phi-1_5's files, or ours); the ten added tokens are added if missing."""
        return cls(_extended(read_tokenizer(Path(folder))), config, str(folder))

    def check(self, where: str) -> None:
        """Raise ValueError unless the tokenizer's ids match the network."""
        tokenizer, special = self.tokenizer, self.special
        expected = {ENDOFTEXT: special.eos, PAD_TOKEN: special.pad}
        expected |= {mark: getattr(special, mark[2:-2]) for mark in MARKS}
        mismatched = {t: i for t, i in expected.items() if tokenizer.convert_tokens_to_ids(t) != i}
        if mismatched or len(tokenizer) != special.first_image:
            raise ValueError(
                f"{where}: the tokenizer has {len(tokenizer)} entries, this Show-o needs "
                f"{special.first_image} with {mismatched or expected}; use the tokenizer of this model"
            )

    # ---- in -------------------------------------------------------------------------------------
    def framed(self, text: str) -> list[int]:
        """`[bos] text [eos]`; a text that starts with bos gets no second one."""
        ids = self.ids([text])[0]
        return [
            *([] if ids[:1] == [self.special.bos] else [self.special.bos]),
            *ids,
            self.special.eos,
        ]

    def reconstruction_prompt(self, template: str) -> list[int]:
        """The framed RecA instruction around a template such as "Describe the image in detail."."""
        return self.framed(f"USER: \n{template} ASSISTANT:")

    def question(self, text: str, with_image: bool = True) -> list[int]:
        """A question at inference; the VQ variant prepends bos and a newline (showo.md 3.3)."""
        if self.understanding == "vq" and with_image:
            return [self.special.bos, *self.ids([f"USER: \n{text} ASSISTANT:"])[0]]
        return self.ids([f"USER: {text} ASSISTANT:"])[0]

    def conversation(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and labels of `USER: q ASSISTANT: a<|endoftext|>...`; labels on answers and their
        endoftext only.

        Labels start with the first token at or after the colon of the turn's "ASSISTANT:", by
        character offset. On BPE this equals the official count ("tokens of the instruction with a
        trailing blank, minus one"), but it is exact for any tokenizer.
        """
        prompts = [
            f"USER: {without_image_tag(question).strip()} ASSISTANT:" for question, _ in turns
        ]
        rounds = [f"{prompt} {answer}" for prompt, (_, answer) in zip(prompts, turns, strict=True)]
        ids: list[int] = []
        labels: list[int] = []
        for prompt, (tokens, starts) in zip(prompts, self.ids_and_starts(rounds), strict=True):
            ids += [*tokens, self.special.eos]
            labels += [
                t if at >= len(prompt) else IGNORE for t, at in zip(tokens, starts, strict=True)
            ]
            labels.append(self.special.eos)
        return ids, labels

    def decoded(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first eos; image codes among them have no text and are skipped."""
        return super().decoded([token for token in ids if token < self.special.first_image])


def _extended(tokenizer: Any) -> Any:
    known = tokenizer.get_vocab()
    if PAD_TOKEN not in known:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens([mark for mark in MARKS if mark not in known])
    return tokenizer
