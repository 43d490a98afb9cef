"""Show-o's laptop base model: its two frozen parts, and a model folder with them and an untrained language model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.models.registry import build_model
from reca.models.showo.model import ShowoModel
from reca.models.showo.weights import CLIP, MAGVIT
from reca.toyworld.pretrain import reader, tokenizer
from reca.toyworld.pretrain.fit import seeded
from reca.toyworld.pretrain.words import build_tokenizer

PARTS = {"tokenizer": tokenizer.pretrain_tokenizer, "reader": reader.pretrain_reader}


def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with trained frozen parts and an untrained language model.

    `parts` are the folders of the stages `tokenizer` and `reader`. ValueError if the closed vocabulary does not fit
    `network.llm_vocab_size`.
    """
    words = build_tokenizer(prompts)
    for key, size in {"llm_vocab_size": len(words), "endoftext": words.eos_token_id}.items():
        if network.get(key) != size:
            raise ValueError(
                f"network.{key} is {network.get(key)}, but the world's vocabulary requires {size}; change it"
            )
    model = seeded(lambda: build_model("showo", network), seed, "language")
    assert isinstance(model, ShowoModel)
    MAGVIT.load_file(model.frozen.magvit, parts["tokenizer"] / tokenizer.FILE)
    assert model.frozen.clip is not None
    CLIP.load_file(model.frozen.clip, parts["reader"] / reader.FILE)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.read_tokenizer(folder)
    model.save(out)
