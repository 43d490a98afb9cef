"""A Show-o of both variants at laptop size, with random weights and a closed vocabulary."""

from __future__ import annotations

import re
from itertools import chain

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from reca.core.rng import numpy_generator
from reca.data.prompts import bank
from reca.models.registry import build_model
from reca.models.showo.model import ShowoModel
from tests.models import tiny_sizes

TEXT = """a and are at bottom circle circles describe how image left many no of on one red right square
the there thing this top two what yes blue green user assistant : , . ?"""
# and the words of the published reconstruction prompts, which a closed vocabulary must hold to train on them
PROMPTS = (re.findall(r"\w+|[^\w\s]+", prompt.lower()) for prompt in bank("paper_like"))
WORDS = list(dict.fromkeys([*TEXT.split(), *sorted(set(chain(*PROMPTS)))]))


def tokenizer_files() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>", "<|endoftext|>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<|endoftext|>"
    )


def network(understanding: str = "clip", **options: object) -> dict:
    """The `network` section: 16 pixels, 4 x 4 codes of 6 bits, 4 CLIP tokens or half-size codes."""
    own = {
        "understanding": understanding,
        "llm_vocab_size": len(WORDS) + 2,
        "endoftext": len(WORDS) + 1,
        "max_text": 24,
        "head_text": 24,
        "system_prompt": "",
        "llm": {"max_position_embeddings": 128},
        "options": options,
    }
    return tiny_sizes.network("showo", own)


def model(folder: object, understanding: str = "clip", **options: object) -> ShowoModel:
    return of_network(folder, network(understanding, **options), tokenizer_files())


def of_network(folder: object, described: dict, files: PreTrainedTokenizerFast) -> ShowoModel:
    """The model of a `network` section, with the tokenizer `files` in `folder`."""
    torch.manual_seed(0)
    built = build_model("showo", described)
    files.save_pretrained(str(folder))
    built.read_tokenizer(folder)
    return built.eval()


def pictures(count: int, side: int = 16) -> list[Image.Image]:
    drawn = numpy_generator("showo tiny pictures").integers(
        0, 256, (count, side, side, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
