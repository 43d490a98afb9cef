"""A tiny Harmon through the trainer: resumed bit for bit with dropout on, recomputed blocks, decorrelated ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca.align.batches import FeatureData, plan_step
from reca.align.distributed import ProcessGroup
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from reca.models.harmon.model import HarmonModel
from tests.models import harmon_tiny as tiny

RECIPE = Recipe(
    tasks={"reca": TaskRecipe(1.0, 2), "i2t": TaskRecipe(1.0, 2)},
    steps=4,
    accumulation=2,
    lr=1e-3,
    schedule="published",
    warmup=4,
    horizon=64,
    order="published",
    betas=[0.9, 0.95],
    weight_decay=0.02,
    clip=1.0,
    precision="fp32",
    checkpoint_every=2,
)


class Rows:
    """An in-memory cache."""

    def __init__(self, features: dict[str, torch.Tensor]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def rows(self, indices):
        return {name: tensor[list(indices)] for name, tensor in self.features.items()}


@pytest.fixture
def data(tmp_path: Path) -> FeatureData:
    model = tiny.model(tmp_path / "first")
    pictures = tiny.pictures(5)
    talk = [[("what thing ?", "a red circle"), ("how many ?", "two")]]
    return FeatureData(
        draw=Rows(model.encode(pictures, "draw")),
        read=Rows(model.encode(pictures, "read")),
        prompts=["describe the image", "what are on the image ?"],
        read_conversations=[talk] * 5,
    )


def trained(
    data: FeatureData, root: Path, name: str, recipe: Recipe = RECIPE, **more
) -> HarmonModel:
    model = tiny.model(root / "words")
    align(model, data, recipe, seed=3, work_dir=root / name, **more)
    return model


def test_resumed_bit_for_bit_with_dropout(data: FeatureData, tmp_path: Path) -> None:
    whole = trained(data, tmp_path, "straight")
    trained(data, tmp_path, "cut", stop_at=3)
    resumed = trained(data, tmp_path, "cut")
    start = tiny.model(tmp_path / "words").state_dict()
    trainable = set(whole.trainable_parameters())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        if name in dict(whole.named_parameters()):
            assert torch.equal(value, start[name]) == (name not in trainable), name
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("straight", "cut")]
    assert logs[0] == logs[1]


def test_recomputed_blocks_draw_the_same_dropout(data: FeatureData, tmp_path: Path) -> None:
    plain = trained(data, tmp_path, "plain")
    again = trained(data, tmp_path, "again", replace(RECIPE, activation_checkpointing=True))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_ranks_draw_apart(data: FeatureData, tmp_path: Path) -> None:
    """The official code gives every rank the same mask, timesteps and noise; here they differ (harmon.md g1)."""
    model = tiny.model(tmp_path / "words")
    plans = [
        plan_step(
            model,
            data,
            RECIPE,
            seed=3,
            step=0,
            processes=ProcessGroup(rank, 2, torch.device("cpu")),
        )
        for rank in (0, 1)
    ]
    for one, other in zip(*plans, strict=True):
        if one.task == "reca":
            assert not torch.equal(one.noise.t, other.noise.t)
            assert not torch.equal(one.noise.orders, other.noise.orders)
            assert one.noise.dropout != other.noise.dropout
        else:
            assert one.conversation.dropout != other.conversation.dropout
    micro = [batch.noise.t for batch in plans[0] if batch.task == "reca"]
    assert not torch.equal(*micro)
