"""Show-o's laptop base model: its two frozen parts, and a model folder with them and an untrained language model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reca.models.registry import build_model
from reca.models.showo import layout as layouts
from reca.models.showo.layout import CONDITION, Layout
from reca.models.showo.loss import hidden
from reca.models.showo.model import ShowoModel
from reca.models.showo.weights import CLIP, MAGVIT
from reca.toyworld.pretrain import reader, tokenizer
from reca.toyworld.pretrain.binding import values_in
from reca.toyworld.pretrain.fit import seeded
from reca.toyworld.pretrain.words import build_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

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


# ---- values of words and pictures ------------------------------------------------------------------
def attention_values(
    model: ShowoModel, images: Sequence[Image], texts: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], int]:
    """See `binding.Values`."""
    config, special = model.config, model.config.ids
    read = model.encode(images, "read")["understanding"]
    prefix = layouts.reading_prefix(config, len(texts), read)
    nothing: list[list[int]] = [[] for _ in texts]
    shown = layouts.conversation(prefix, nothing, nothing, 0, special)
    rows = [[special.t2i, *model.text.framed(text)] for text in texts]
    told = layouts.conversation([], rows, rows, max(map(len, rows)), special)
    seen = [v[:, shown.roles[0] == CONDITION] for v in _values(model, shown, read)]
    return seen, _values(model, told), 2  # after t2i and bos


def _values(model: ShowoModel, layout: Layout, read: Tensor | None = None) -> list[Tensor]:
    """The values [B, L, D] of every layer of the language model."""
    shown = layout.prepared(False, model.network.device)
    layers = model.network.showo.model.layers
    return values_in(layers, lambda: hidden(model.network, model.options, shown, read))
