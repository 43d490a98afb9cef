"""Show-o's text front end: the wording around prompts and questions, and exact labels for
conversations.

Source: docs/reference/showo.md 1.4, 3 (text encoding), 3.3 (conversations) and 5
(prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reca.models.common.tokenizer import read_tokenizer
from reca.models.showo.layout import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from reca.models.showo.network import SpecialIds

ENDOFTEXT = "<|endoftext|>"
PAD_TOKEN = "[PAD]"
UNKNOWN = "<unk>"  # of word-level vocabularies; byte-level ones need none
# In id order behind [PAD]; ordinary added tokens, not special ones, as in the released vocabulary.
MARKS = tuple(
    f"<|{name}|>" for name in ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
)

Understanding = Literal["clip", "vq"]


def load_tokenizer(folder: Path, special: SpecialIds) -> PreTrainedTokenizerFast:
    """Read a tokenizer folder (phi-1_5's files, or one that we saved) and add the ten tokens where
    they are missing.

    ValueError when its ids do not fit the network's vocabulary.
    """
    loaded: Any = read_tokenizer(folder)
    tokenizer = _extended(loaded)
    check_vocabulary(tokenizer, special, str(folder))
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, special: SpecialIds, where: str) -> None:
    """ValueError unless the tokenizer's ids are those that the network counts on."""
    wanted = {ENDOFTEXT: special.eos, PAD_TOKEN: special.pad}
    wanted |= {mark: getattr(special, mark[2:-2]) for mark in MARKS}
    wrong = {t: i for t, i in wanted.items() if tokenizer.convert_tokens_to_ids(t) != i}
    if wrong or len(tokenizer) != special.first_image:
        raise ValueError(
            f"{where}: the tokenizer has {len(tokenizer)} entries, this Show-o needs "
            f"{special.first_image} with {wrong or wanted}; give the tokenizer that this model was trained with"
        )


def _extended(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    known = tokenizer.get_vocab()
    if PAD_TOKEN not in known:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens([mark for mark in MARKS if mark not in known])
    return tokenizer


class TextFrontEnd:
    """Turns prompts, questions and conversations into ids; the layouts do the rest."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, special: SpecialIds, understanding: Understanding
    ) -> None:
        check_vocabulary(tokenizer, special, "tokenizer")
        self.tokenizer = tokenizer
        self.special = special
        self.understanding = understanding
        self._unknown = tokenizer.get_vocab().get(UNKNOWN)

    # ---- in -------------------------------------------------------------------------------------
    def framed(self, text: str) -> list[int]:
        """`[bos] text [eos]`; a text that begins with bos gets no second one."""
        ids = self.plain([text])[0]
        return [
            *([] if ids[:1] == [self.special.bos] else [self.special.bos]),
            *ids,
            self.special.eos,
        ]

    def reconstruction_prompt(self, template: str) -> list[int]:
        """The framed RecA instruction around a template such as "Describe the image in detail."."""
        return self.framed(f"USER: \n{template} ASSISTANT:")

    def question(self, text: str, with_image: bool = True) -> list[int]:
        """A question at inference; the VQ variant puts bos and a newline in front (showo.md 3.3)."""
        if self.understanding == "vq" and with_image:
            return [self.special.bos, *self.plain([f"USER: \n{text} ASSISTANT:"])[0]]
        return self.plain([f"USER: {text} ASSISTANT:"])[0]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens; ValueError on a word that a word-level vocabulary lacks."""
        return [ids for ids, _ in self._encoded(texts)]

    def conversation(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and labels of `USER: q ASSISTANT: a<|endoftext|>...`; labels on answers and their
        endoftext only.

        A label begins where a token starts at or behind the colon of its own "ASSISTANT:", by
        character offset: the official count ("tokens of the instruction with a trailing blank,
        minus one") on BPE, but exact everywhere.
        """
        asked = [f"USER: {_without_image(question)} ASSISTANT:" for question, _ in turns]
        rounds = [f"{ask} {answer}" for ask, (_, answer) in zip(asked, turns, strict=True)]
        ids: list[int] = []
        labels: list[int] = []
        for ask, (tokens, starts) in zip(asked, self._encoded(rounds), strict=True):
            ids += [*tokens, self.special.eos]
            labels += [
                t if at >= len(ask) else IGNORE for t, at in zip(tokens, starts, strict=True)
            ]
            labels.append(self.special.eos)
        return ids, labels

    def _encoded(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids and the character offset at which each token starts."""
        if not texts:
            return []
        coded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = []
        for text, ids, spans in zip(
            texts, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            self._refuse_unknown(text, ids, spans)
            rows.append((ids, [start for start, _ in spans]))
        return rows

    def _refuse_unknown(
        self, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> None:
        if self._unknown not in ids:
            return
        spans = [span for token, span in zip(ids, spans, strict=True) if token == self._unknown]
        words = ", ".join(repr(text[start:stop]) for start, stop in spans)
        raise ValueError(f"{text!r}: this model's vocabulary lacks {words}")

    # ---- out ------------------------------------------------------------------------------------
    def decoded(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first eos; image codes among them have no text and are
        left out.
        """
        ids = list(ids)
        ids = ids[: ids.index(self.special.eos)] if self.special.eos in ids else ids
        text = [token for token in ids if token < self.special.first_image]
        return str(self.tokenizer.decode(text, skip_special_tokens=True)).strip()


def _without_image(question: str) -> str:
    """Drop LLaVA's `<image>` tag with its newline: the picture has its own place in the layout."""
    for tag in ("<image>\n", "\n<image>", "<image>"):
        question = question.replace(tag, "")
    return question.strip()
