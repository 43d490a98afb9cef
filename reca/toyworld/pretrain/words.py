"""The laptop's closed text tokenizer: WordPiece over the world's words and its prompts, as a Hugging Face tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from reca.toyworld.text import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN, END = "<unk>", "<|endoftext|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"  # tokens of Qwen's chat template
CHAT = ("user", "assistant", ":")
SPEAKERS = ("<|User|>", "<|Assistant|>")  # of Janus-Pro's chat wording
BEGIN = "<|begin|>"
JANUS_MARKS = ("<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>")  # noqa: RUF001


def word_list(prompts: Iterable[str]) -> list[str]:
    """Every text token in id order: words sorted, then <unk>, end of text last."""
    pieces = {piece for prompt in prompts for piece in re.findall(r"\w+|[^\w\s]+", prompt.lower())}
    return [*sorted({*vocabulary(), *CHAT, *pieces}), UNKNOWN, END]


def build_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer that splits at whitespace and punctuation, and plurals into the noun and `##s`.

    Plurals share the noun's embedding: sparse captions rarely count, so separate words would hardly be learned.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(word_list(prompts))}
    core = Tokenizer(WordPiece(ids, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, eos_token=END, bos_token=END
    )


def build_chat_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The same words followed by Qwen's chat markers, with single and double newlines as tokens, as in Qwen."""
    from tokenizers import AddedToken

    tokenizer = build_tokenizer(prompts)
    markers = [AddedToken(mark, normalized=False, special=True) for mark in (TURN, TURN_END)]
    lines = [AddedToken(newline, normalized=False) for newline in ("\n", "\n\n")]
    tokenizer.add_tokens([*markers, *lines])
    tokenizer.eos_token = TURN_END
    return tokenizer


def build_janus_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The same words followed by the speakers, beginning of text, Janus-Pro's markers, and newlines as tokens."""
    from tokenizers import AddedToken

    tokenizer = build_tokenizer(prompts)
    marks = [
        AddedToken(mark, normalized=False, special=True)
        for mark in (*SPEAKERS, BEGIN, *JANUS_MARKS)
    ]
    lines = [AddedToken(newline, normalized=False) for newline in ("\n", "\n\n")]
    tokenizer.add_tokens([*marks, *lines])
    tokenizer.bos_token = BEGIN
    return tokenizer
