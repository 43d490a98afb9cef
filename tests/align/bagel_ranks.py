"""Started by torchrun in test_bagel_distributed.py: RecA on a tiny BAGEL, sharded and with recomputation."""

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
from reca.core.rng import generator
from reca.models.bagel.batch import FlowNoise
from reca.models.bagel.model import BagelModel
from tests.models import bagel_tiny as tiny

SEED = 3


class Rows:
    """Features in memory."""

    def __init__(self, features):
        self.features = features

    def __len__(self):
        return len(self.features["target"])

    def rows(self, indices):
        return {name: rows[list(indices)] for name, rows in self.features.items()}


def recipe(batch: int) -> Recipe:
    return Recipe(
        tasks={"reca": TaskRecipe(1.0, batch)},
        steps=3,
        lr=1e-2,
        weight_decay=0.0,
        clip=1.0,
        activation_checkpointing=True,
    )


def model_and_data(folder: Path) -> tuple[BagelModel, FeatureData]:
    """A model whose draws are the same for every row, so that ranks only split the batch."""
    model = tiny.model(folder)
    one = model.sample_noise(1, generator("ranks"))

    def drawn(batch: int, _: torch.Generator) -> FlowNoise:
        parts = (one.raw, one.gaussian, one.posterior, torch.ones(1))
        return FlowNoise(*(part.expand(batch, *part.shape[1:]) for part in parts))

    model.sample_noise = drawn  # type: ignore[method-assign]
    data = FeatureData(
        draw=Rows(model.encode(tiny.pictures(8), "draw")), prompts=["describe the image"]
    )
    return model, data


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = distributed.join("cpu").rank
    model, data = model_and_data(folder / f"words-{rank}")
    align(model, data, recipe(2), seed=SEED, work_dir=folder / "work", device="cpu")
    gen = model.network.decoder.layers[0].self_attn.q_proj_moe_gen.weight
    und = model.network.decoder.layers[0].self_attn.q_proj.weight
    facts = {"sharded": isinstance(gen, DTensor), "frozen_whole": not isinstance(und, DTensor)}
    if distributed.join("cpu").first:
        (folder / "facts.json").write_text(json.dumps(facts))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
