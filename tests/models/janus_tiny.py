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
from tests.models import showo_tiny

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
    return {
        "resolution": 16,
        "system_prompt": "",
        "llm": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(WORDS) + 1 + len(MARKS),
            "max_position_embeddings": 256,
            "initializer_range": 0.2,  # with small weights the condition would have no effect
        },
        "vision": {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
        "vq": {
            "num_embeddings": 32,
            "embed_dim": 4,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
        },
        "options": options,
    }


def model(folder: object, **options: object) -> JanusModel:
    torch.manual_seed(0)
    built = build_model("janus", network(**options))
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    tokenizer_files().save_pretrained(str(folder))
    built.read_tokenizer(folder)
    return built.eval()


def pictures(count: int, side: int | tuple[int, int] = 16) -> list[Image.Image]:
    height, width = (side, side) if isinstance(side, int) else side
    drawn = numpy_generator("janus tiny pictures").integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
