"""Tokenizers of scale tiny: bytes, so that any text can be encoded, 768 pieces of words, and the marks of a family.

The pieces are those of the published prompts: with fewer, the longest would not fit the 128 tokens of Show-o's head.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from reca.data.prompts import bank
from reca.models.bagel.text import MARKS as BAGEL
from reca.models.janus.config import SYSTEM_PROMPT
from reca.models.janus.text import BEGIN, END, PAD
from reca.models.openuni.text import MARKS as OPENUNI
from reca.models.showo.config import VICUNA_SYSTEM_PROMPT

# Marks in the order of their ids, which config/scales/tiny.yaml states. Harmon's and OpenUni's prompts begin with a
# fixed number of tokens, so the speakers are one token each, as in Qwen's vocabulary.
SPEAKERS = ("user", "assistant")
MARKS: dict[str, tuple[str, ...]] = {
    "showo": ("<|endoftext|>",),
    "bagel": tuple(BAGEL.values()),
    "harmon": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPEAKERS),
    "janus": ("<|User|>", "<|Assistant|>", "<bos>", "<eos>", PAD, BEGIN, END),
    "openuni": (*OPENUNI.values(), "<|im_start|>", *SPEAKERS),
}
PIECES = 1024  # before the marks: 256 bytes and 768 merges
ENDS = {"showo": "<|endoftext|>", "janus": "<eos>"}  # of the others: <|im_end|>


def tokenizer_files(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family's tiny network."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=letters, show_progress=False)
    texts = [VICUNA_SYSTEM_PROMPT, SYSTEM_PROMPT, *bank("paper_like")]
    core.train_from_iterator(texts, trainer)
    assert core.get_vocab_size() == PIECES
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS[family]])
    begin = {"bos_token": "<bos>"} if family == "janus" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=ENDS.get(family, "<|im_end|>"), **begin
    )
