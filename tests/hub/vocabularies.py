"""Tokenizer files of the released kinds: byte-level BPE with the real special tokens.

Without a scale, numbers of entries and ids are real, too. The merges are few: they join the words of the templates and
a few more, and all other text stays bytes. An entry that no merge reaches is a filler. At a scale, a vocabulary is 256
bytes, 768 pieces of the published prompts and the special tokens, whose ids config/scales/ states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from reca.data.prompts import bank
from reca.models.janus.config import SYSTEM_PROMPT
from reca.models.showo.config import VICUNA_SYSTEM_PROMPT

WORDS = (
    "\u0120a",
    "\u0120red",
    "\u0120circle",
    "Generate",
    "\u0120an",
    "\u0120image",
)  # of prompts; U+0120 is a blank
QWEN_IDS = {
    "user": 872,
    "system": 8948,
    "assistant": 77091,
    "\u010a\u010a": 271,
}  # U+010A is a newline (harmon.md a)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
QWEN_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
INTERNVL = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
BOS, EOS, PAD = (
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "\u2581pad\u2581")
)

PIECES = 1024  # entries at a scale, before the special tokens
OFTEN = 1000  # times that a word comes in the text, enough for it to become one piece

Files = dict[str, bytes]
Entries = tuple[dict[str, int], list[tuple[str, str]]]
"""A vocabulary and its merges."""


def alphabet() -> list[str]:
    """The character of each byte, in the order of GPT-2's ids."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, shown), *(chr(256 + number) for number in range(256 - len(shown)))]


@cache
def pieces() -> Entries:
    """The bytes and the pieces that the published prompts have most; speakers and the blank line are one token each.

    With fewer, the longest prompt would not fit the 128 tokens of Show-o's head.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=alphabet(), show_progress=False
    )
    words = [word.replace("\u010a", "\n") for word in QWEN_IDS]
    prompts = [VICUNA_SYSTEM_PROMPT, SYSTEM_PROMPT, *bank("paper_like")]
    core.train_from_iterator([*prompts, *words * OFTEN], trainer)
    model = json.loads(core.to_str())["model"]
    vocabulary = model["vocab"]
    assert len(vocabulary) == PIECES and vocabulary.keys() >= QWEN_IDS.keys()
    return vocabulary, [(first, second) for first, second in model["merges"]]


def byte_pairs(size: int, ids: Mapping[str, int]) -> Entries:
    """A vocabulary of `size` entries that holds `ids`, and merges that build these and `WORDS` letter by letter."""
    vocabulary = {letter: id_ for id_, letter in enumerate(alphabet())} | dict(ids)
    free = iter(sorted(set(range(size)) - set(vocabulary.values())))
    merges: list[tuple[str, str]] = []
    for word in (*ids, *WORDS):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = next(free)
            merges.append((word[: end - 1], word[end - 1]))
    vocabulary |= {f"filler-{id_}": id_ for id_ in free}
    return vocabulary, list(dict.fromkeys(merges))


def files(
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    added: Sequence[AddedToken],
    names: Iterable[str],
) -> Files:
    """The released `names` among the files that tokenizers come in."""
    core = json.loads(tokenizer.to_str())
    ids = {token["content"]: token["id"] for token in core["added_tokens"]}
    decoder = {str(ids[token.content]): {"content": token.content, "lstrip": False, "normalized": token.normalized,
                                         "rstrip": False, "single_word": False, "special": token.special}
               for token in added}  # fmt: skip
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    lines = [" ".join(pair) for pair in core["model"]["merges"]]
    made = {
        "tokenizer.json": core,
        "tokenizer_config.json": {"added_tokens_decoder": decoder, **config},
        "vocab.json": core["model"]["vocab"],
        "added_tokens.json": ids,
        "special_tokens_map.json": {role: config[role] for role in roles if config.get(role)},
    }
    merges = "\n".join(["#version: 0.2", *lines, ""])
    return {
        name: (merges if name == "merges.txt" else _json(made[name])).encode() for name in names
    }


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False)


def byte_level(entries: Entries, split: Sequence[Any], added: Sequence[AddedToken]) -> Tokenizer:
    """Byte-level BPE after a split, with `added` tokens."""
    core = Tokenizer(models.BPE(*entries))
    core.pre_tokenizer = pre_tokenizers.Sequence(list(split))
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.add_tokens(list(added))
    return core


def qwen(names: Iterable[str], more: Sequence[str] = (), scale: str | None = None) -> Files:
    """Qwen2.5's: 151643 entries, 22 added ones from `<|endoftext|>` on, and `more`."""
    added = [AddedToken(mark, special=True, normalized=False) for mark in QWEN_SPECIAL]
    added += [AddedToken(mark, special=False, normalized=False) for mark in QWEN_PLAIN]
    added += [AddedToken(mark, special=True, normalized=False) for mark in more]
    split = [
        pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    core = byte_level(pieces() if scale else byte_pairs(151643, QWEN_IDS), split, added)
    core.normalizer = normalizers.NFC()
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": [*QWEN_SPECIAL[1:], *more],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return files(core, config, added, names)


def phi(names: Iterable[str], scale: str | None = None) -> Files:
    """Phi-1.5's, which is CodeGen's: GPT-2's 50257 entries, and 38 runs of blanks and tabs (showo.md 1.4)."""
    runs = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    added = [end, *(AddedToken(run, special=False, normalized=True) for run in runs)]
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core = byte_level(
        pieces() if scale else byte_pairs(50257, {"<|endoftext|>": 50256}), split, added
    )
    config = {
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|endoftext|>",
        "model_max_length": 2048,
        "tokenizer_class": "CodeGenTokenizer",
        "unk_token": "<|endoftext|>",
    }
    return files(core, config, added, names)


def deepseek(names: Iterable[str], scale: str | None = None) -> Files:
    """Janus-Pro's: 100000 entries, marks at the ids of janus.md a, placeholders between; at a scale, only marks."""
    marks = {0: BOS, 1: EOS, 2: PAD, 16: "<begin_of_image>", 581: "<image_placeholder>"}
    marks |= {591: "<|User|>", 592: "<|Assistant|>", 593: "<end_of_image>"}
    holder = "<\uff5cplace\u2581holder\u2581no\u2581{}\uff5c>".format
    added = [
        AddedToken(marks.get(n, holder(n)), special=n in marks, normalized=False)
        for n in (marks if scale else range(594))
    ]
    split = [
        pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
        pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    core = byte_level(pieces() if scale else byte_pairs(100000, {}), split, added)
    plain = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {**plain, "content": BOS},
        "clean_up_tokenization_spaces": False,
        "eos_token": {**plain, "content": EOS},
        "legacy": True,
        "model_max_length": 16384,
        "pad_token": {**plain, "content": PAD},
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
    }
    made = files(
        core,
        {k: v for k, v in config.items()},
        added,
        ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    )
    document = json.loads(made["tokenizer_config.json"])
    del document["added_tokens_decoder"]  # this one was written by an older transformers
    made["tokenizer_config.json"] = json.dumps(document, ensure_ascii=False).encode()
    return {name: made[name] for name in names}


def clip(names: Iterable[str], scale: str | None = None) -> Files:
    """CLIP's: lower-case BPE whose last letters end a word, 49408 entries; we do not read it."""
    letters, size = alphabet(), PIECES if scale else 49408
    ids = {
        letter: i for i, letter in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])
    }
    ids |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
    ids |= {f"filler-{n}": n for n in range(len(letters) * 2, size - 2)}
    core = Tokenizer(models.BPE(ids, [], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    added = [
        AddedToken(mark, special=True, normalized=False)
        for mark in ("<|startoftext|>", "<|endoftext|>")
    ]
    core.add_tokens(added)
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }
    return files(core, config, added, names)


_READ = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# By family, what it reads of its tokenizer, from a scale or None
TOKENIZERS: dict[str, Callable[[str | None], Files]] = {
    "showo": lambda scale: phi(_READ, scale),
    "bagel": lambda scale: qwen(_READ, scale=scale),
    "harmon": lambda scale: qwen(_READ, scale=scale),
    "openuni": lambda scale: qwen(_READ, INTERNVL, scale),
    "janus": lambda scale: deepseek(_READ, scale),
}
