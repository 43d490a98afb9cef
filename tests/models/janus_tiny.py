"""A tiny Janus-Pro with random weights and a closed vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from reca.core.rng import numpy_generator
from reca.models.janus.model import JanusModel
from reca.models.janus.text import BEGIN, END, PAD
from reca.models.registry import build_model
from tests.models import showo_tiny, tiny_sizes

WORDS = showo_tiny.WORDS
BOS, EOS = "<bos>", "<eos>"
EOS_ID = len(WORDS) + 1 + 5
MARKS = ("<|User|>", "<|Assistant|>", "\n", "\n\n", BOS, EOS, PAD, BEGIN, END)


def tokenizer_files() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token=BOS, eos_token=EOS
    )


def network(**options: object) -> dict[str, Any]:
    """The `network` section: 16 pixels, 4 x 4 of 32 codes, 4 understanding embeddings."""
    own = {
        "system_prompt": "",
        "llm": {
            "num_key_value_heads": 1,
            "vocab_size": len(WORDS) + 1 + len(MARKS),
            "max_position_embeddings": 256,
            "initializer_range": 0.2,  # with small weights the condition would have no effect
        },
        "options": options,
    }
    return tiny_sizes.network("janus", own)


def model(folder: object, **options: object) -> JanusModel:
    return of_network(folder, network(**options), tokenizer_files())


def of_network(folder: object, described: dict[str, Any], files: Any) -> JanusModel:
    """The model of a `network` section, with the tokenizer `files` in `folder`."""
    torch.manual_seed(0)
    built = build_model("janus", described)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    files.save_pretrained(str(folder))
    built.read_tokenizer(folder)
    return built.eval()


def pictures(count: int, side: int | tuple[int, int] = 16) -> list[Image.Image]:
    height, width = (side, side) if isinstance(side, int) else side
    drawn = numpy_generator("janus tiny pictures").integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
