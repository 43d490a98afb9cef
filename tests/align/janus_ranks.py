"""Started by torchrun in test_janus.py: RecA and conversations on a tiny Janus-Pro, sharded and with recomputation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from reca.align import distributed
from reca.align.batches import FeatureData
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from reca.models.janus.batch import DropoutNoise
from reca.models.janus.model import JanusModel
from tests.align.test_harmon import Rows
from tests.models import janus_tiny as tiny

SEED = 3
TALK = [[("what thing ?", "a red circle"), ("how many ?", "two")]]


def recipe(batch: int) -> Recipe:
    tasks = {"reca": TaskRecipe(1.0, batch), "i2t": TaskRecipe(1.0, batch)}
    return Recipe(
        tasks=tasks, steps=3, lr=1e-2, weight_decay=0.0, clip=1.0, activation_checkpointing=True
    )


def model_and_data(folder: Path) -> tuple[JanusModel, FeatureData]:
    """A model that drops no condition, so that ranks only split the batch."""
    model, pictures = tiny.model(folder), tiny.pictures(8)

    def kept(batch: int, _: torch.Generator) -> DropoutNoise:
        return DropoutNoise(torch.ones(batch), model.config.num_codes)

    model.sample_noise = kept  # type: ignore[method-assign]
    data = FeatureData(
        draw=Rows(model.encode(pictures, "draw")),
        read=Rows(model.encode(pictures, "read")),
        prompts=["describe the image"],
        read_conversations=[TALK] * 8,
    )
    return model, data


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = distributed.join("cpu").rank
    model, data = model_and_data(folder / f"words-{rank}")
    align(model, data, recipe(2), seed=SEED, work_dir=folder / "work", device="cpu")
    trained = model.network.language_model.model.layers[0].self_attn.q_proj.weight
    frozen = model.frozen.vision_model.post_layernorm.weight
    facts = {"sharded": isinstance(trained, DTensor), "whole": not isinstance(frozen, DTensor)}
    if distributed.join("cpu").first:
        (folder / "facts.json").write_text(json.dumps(facts))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
