"""A Janus-Pro as a golden case describes it, filled by official names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reca.core.structure import build
from reca.models.janus import weights
from reca.models.janus.config import LLAMA_1B, JanusConfig, JanusOptions
from reca.models.janus.layout import IMAGE
from reca.models.janus.model import JanusModel
from tests.reference import golden_cases as golden

# Of the losses; tests/kernels runs them once more with triton, in the interpreter.
IMPLEMENTATION: Any = os.environ.get("RECA_TEST_IMPLEMENTATION", "torch")
VALUES, GRADIENTS = 1e-5, 1e-4  # janus.md g, suggested tolerances
LLAMA_7B = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
RELEASED = {"1b": JanusConfig(), "7b": JanusConfig(llm=dict(LLAMA_7B))}


def golden_config(config: Mapping[str, Any]) -> JanusConfig:
    """Read the `config` of a golden case."""
    vision, llm = dict(config["vision"]), dict(config["llm"])
    assert llm.pop("tie_word_embeddings", False) is False, "Janus-Pro's text head is untied"
    described = {
        "resolution": vision.pop("image_size"),
        "vision": vision,
        "vq": config["vq"],
        "llm": llm,
        "head_width": config["head_hidden"],
    }
    return build(JanusConfig, described, "network")


def model_of(described: Mapping[str, Any]) -> JanusModel:
    """The case's model with its weights."""
    model = JanusModel(
        golden_config(described["config"]), JanusOptions(implementation=IMPLEMENTATION)
    )
    shapes = {name: tuple(t.shape) for name, t in model.official_state().items()}
    filled = golden.filling("janus").fill_state_dict(shapes, described["seed"])
    state = {name: torch.from_numpy(value) for name, value in filled.items()}
    weights.NAMING["official"].load(model, state, "fill")
    return model.eval()


def rows_of(
    described: Mapping[str, Any], ids: Tensor, mask: Tensor, length: int
) -> list[list[int]]:
    """Prompts without padding, one mark in place of an image's `length` placeholders."""
    image, rows = described["config"]["image_token_id"], []
    for row, real in zip(ids, mask.bool(), strict=True):
        tokens = row[real].tolist()
        if image in tokens:
            at = tokens.index(image)
            assert tokens[at : at + length] == [image] * length and tokens.count(image) == length
            tokens[at : at + length] = [IMAGE]
        rows.append(tokens)
    return rows


def labels_of(
    described: Mapping[str, Any], row: list[int], labels: Tensor, length: int
) -> list[int]:
    """Labels of a row's real tokens, one for the mark of an image."""
    own = labels.tolist()
    at = row.index(IMAGE) if IMAGE in row else len(row)
    return own[: at + 1] + own[at + length :] if IMAGE in row else own
