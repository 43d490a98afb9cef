"""A Harmon at laptop size, with random weights and a closed vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from reca.core.rng import numpy_generator
from reca.models.harmon.model import HarmonModel
from reca.models.registry import build_model
from tests.models import showo_tiny, tiny_sizes

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
    own = {
        "end": END,
        "llm": {"vocab_size": len(WORDS) + 1 + len(MARKS), "max_position_embeddings": 256},
        "mar": {"repeats": 2, "sampling_steps": 5},
        "vae": {"scale": 0.5},
        "options": options,
    }
    return tiny_sizes.network("harmon", own)


def model(folder: object, **options: object) -> HarmonModel:
    return of_network(folder, network(**options), tokenizer_files())


def of_network(folder: object, described: dict[str, Any], files: Any) -> HarmonModel:
    """The model of a `network` section, with the tokenizer `files` in `folder`."""
    torch.manual_seed(0)
    built = build_model("harmon", described)
    for (
        parameter
    ) in built.network.parameters():  # what starts small or at zero would hide the condition
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    files.save_pretrained(str(folder))
    built.read_tokenizer(folder)
    return built.eval()


def pictures(count: int, side: int | tuple[int, int] = 16) -> list[Image.Image]:
    height, width = (side, side) if isinstance(side, int) else side
    drawn = numpy_generator("harmon tiny pictures").integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )
    return [Image.fromarray(one) for one in drawn]
