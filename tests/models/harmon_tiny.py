"""A Harmon at laptop size, with random weights and a closed vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from reca.core.rng import numpy_generator
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.text import load_tokenizer
from reca.models.registry import build_model
from tests.models import showo_tiny

TEXT = """a and are at bottom circle circles describe generate how image left many no of on one red right square
the there thing this top two what yes blue green user an assistant : , . ?"""
WORDS = list(dict.fromkeys([*TEXT.split(), *showo_tiny.WORDS]))
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "\n", "\n\n")
END = len(WORDS) + 1 + 2


def tokenizer_files() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def network(**options: object) -> dict[str, Any]:
    """The `network` section: 16 pixels, 4 x 4 latents of 4 channels."""
    return {
        "resolution": 16,
        "end": END,
        "llm": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(WORDS) + 1 + len(MARKS),
            "max_position_embeddings": 256,
        },
        "mar": {
            "encoder_width": 24,
            "encoder_depth": 2,
            "encoder_heads": 2,
            "decoder_width": 32,
            "decoder_depth": 2,
            "decoder_heads": 2,
            "latent_channels": 4,
            "buffers": 3,
            "table": 2,
            "classes": 5,
            "head_depth": 2,
            "head_width": 32,
            "repeats": 2,
            "sampling_steps": 5,
        },
        "vae": {"width": 8, "multipliers": [1, 1, 2], "resnets": 1, "groups": 4, "scale": 0.5},
        "options": options,
    }


def model(folder: object, **options: object) -> HarmonModel:
    torch.manual_seed(0)
    built = build_model("harmon", network(**options))
    for (
        parameter
    ) in built.network.parameters():  # what starts small or at zero would hide the condition
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    tokenizer_files().save_pretrained(str(folder))
    built.set_tokenizer(load_tokenizer(folder, built.config.end))
    return built.eval()


def pictures(count: int, side: int | tuple[int, int] = 16) -> list[Image.Image]:
    height, width = (side, side) if isinstance(side, int) else side
    drawn = numpy_generator("harmon tiny pictures").integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
