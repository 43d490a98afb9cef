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
from reca.models.showo.text import load_tokenizer

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
    described = {
        "resolution": 16,
        "understanding": understanding,
        "llm_vocab_size": len(WORDS) + 2,
        "endoftext": len(WORDS) + 1,
        "max_text": 24,
        "head_text": 24,
        "system_prompt": "",
        "llm": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        },
        "vq": {
            "ch": 8,
            "enc_ch_mult": [1, 1, 2],
            "enc_num_res_blocks": [1, 1, 1],
            "dec_ch_mult": [1, 1, 2],
            "dec_num_res_blocks": [1, 1, 1],
            "z_channels": 6,
        },
        "options": options,
    }
    if understanding == "clip":
        tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
        tower |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
        described |= {"clip_vision": tower, "projector": [24, 32, 32]}
    return described


def model(folder: object, understanding: str = "clip", **options: object) -> ShowoModel:
    return of_network(folder, network(understanding, **options))


def of_network(folder: object, described: dict) -> ShowoModel:
    """The model of a `network` section, with its tokenizer in `folder`."""
    torch.manual_seed(0)
    built = build_model("showo", described)
    tokenizer_files().save_pretrained(str(folder))
    built.set_tokenizer(load_tokenizer(folder, built.config.ids))
    return built.eval()


def pictures(count: int, side: int = 16) -> list[Image.Image]:
    drawn = numpy_generator("showo tiny pictures").integers(
        0, 256, (count, side, side, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
