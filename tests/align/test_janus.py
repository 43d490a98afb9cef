"""A tiny Janus-Pro through the trainer: killed and resumed bit for bit, recomputed; frozen parts untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca.align.batches import FeatureData
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from reca.models.janus.model import JanusModel
from tests.align.test_harmon import Rows
from tests.models import janus_tiny as tiny

RECIPE = Recipe(
    tasks={"reca": TaskRecipe(1.0, 2), "i2t": TaskRecipe(1.0, 2)}, steps=10, accumulation=2, lr=1e-3,
    warmup=2, schedule="constant", betas=[0.9, 0.95], weight_decay=0.0, clip=1.0, precision="fp32",
    checkpoint_every=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("janus")


@pytest.fixture(scope="module")
def data(folder: Path) -> FeatureData:
    model, pictures = tiny.model(folder / "words"), tiny.pictures(5)
    talk = [[("what thing ?", "a red circle"), ("how many ?", "two")]]
    return FeatureData(
        draw=Rows(model.encode(pictures, "draw")),
        read=Rows(model.encode(pictures, "read")),
        prompts=["describe the image", "what are on the image ?"],
        read_conversations=[talk] * 5,
    )


def trained(folder: Path, data: FeatureData, work: Path, **changed: object) -> JanusModel:
    model = tiny.model(folder / "words")
    align(model, data, replace(RECIPE, **changed), seed=3, work_dir=work)
    return model


@pytest.fixture(scope="module")
def straight(
    folder: Path, data: FeatureData, tmp_path_factory: pytest.TempPathFactory
) -> JanusModel:
    return trained(folder, data, tmp_path_factory.mktemp("straight"))


def test_frozen_parts_stay_and_all_others_move(folder: Path, straight: JanusModel) -> None:
    before = tiny.model(folder / "words").state_dict()
    after = straight.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(straight.trainable_parameters())


def test_a_resumed_run_is_the_same(
    folder: Path, data: FeatureData, straight: JanusModel, tmp_path: Path
) -> None:
    class Stops(Rows):
        left = 14

        def rows(self, indices):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().rows(indices)

    with pytest.raises(KeyboardInterrupt):
        trained(folder, replace(data, draw=Stops(data.draw.features)), tmp_path)
    resumed = trained(folder, data, tmp_path).state_dict()
    assert all(torch.equal(resumed[name], t) for name, t in straight.state_dict().items())


def test_recomputed_blocks_change_nothing(
    folder: Path, data: FeatureData, straight: JanusModel, tmp_path: Path
) -> None:
    again = trained(folder, data, tmp_path, activation_checkpointing=True).state_dict()
    for name, tensor in straight.state_dict().items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)
