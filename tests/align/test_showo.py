"""A tiny Show-o through cache and trainer: on real photographs, resumed bit for bit, frozen parts untouched."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from reca.align.trainer import align
from reca.align.training_data import feature_data
from reca.config.recipe import Recipe, TaskRecipe
from reca.config.schema import DataSource
from reca.features import build as cache
from reca.models.showo.model import ShowoModel
from tests.models import showo_tiny

PHOTOGRAPHS = {
    "skimage/data": ("camera.png", "logo.png", "rocket.jpg", "coffee.png"),  # grey, RGBA, odd sizes
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
RECIPE = Recipe(
    tasks={"reca": TaskRecipe(1.0, 4), "i2t": TaskRecipe(1.0, 2)},
    steps=6,
    accumulation=2,
    lr=2e-3,
    warmup=1,
    ema=0.9,
    clip=1.0,
    precision="fp32",
    prompts="file",
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images in a folder, each with a conversation next to it."""
    folder = tmp_path_factory.mktemp("photographs")
    for place, names in PHOTOGRAPHS.items():
        package, _, inside = place.partition("/")
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            pytest.skip(f"{package} is not installed: it ships the photographs")
        for name in names:
            shutil.copy(Path(found.origin).parent / inside / name, folder)
    return folder


def prepared(
    photographs: Path, root: Path, understanding: str
) -> tuple[ShowoModel, object, Recipe]:
    """A model, its cached photographs joined with texts, and the recipe with its prompts."""
    from dataclasses import replace

    model = showo_tiny.model(root / "words", understanding)
    source = DataSource(kind="llava", options={"images": str(photographs)})
    talks = [
        {
            "id": path.name,
            "image": path.name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat are the circles ?"},
                {"from": "gpt", "value": "a red circle"},
            ],
        }
        for path in sorted(photographs.iterdir())
        if not path.name.startswith(".")
    ]
    (root / "talks.json").write_text(json.dumps(talks))
    (root / "prompts.txt").write_text("describe the image\nwhat are on the image ?\n")
    folders = {"reconstruct": root / "talks.json", "answer": root / "talks.json"}
    sources = {"reconstruct": source, "answer": source}
    from reca.features.roles import open_role

    caches = {use: root / use for use in ("draw", "read")}
    for use, folder in caches.items():
        built = cache.build(
            model, open_role(source, root / "talks.json"), folder, use=use, code="test"
        )
        assert len(built) == 6
    recipe = replace(RECIPE, prompts_file=str(root / "prompts.txt"))
    return model, feature_data(recipe, sources, folders, caches, seed=3, ranks=1), recipe


@pytest.mark.parametrize("understanding", ["clip", "vq"])
def test_photographs_are_learned_and_resumed_exactly(
    photographs: Path, tmp_path: Path, understanding: str
) -> None:
    model, data, recipe = prepared(photographs, tmp_path, understanding)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    align(model, data, recipe, seed=3, work_dir=tmp_path / "straight")
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()
    ]
    assert losses[-1]["reca"] < losses[0]["reca"] and losses[-1]["i2t"] < losses[0]["i2t"]

    trained = set(model.trainable_parameters())
    for name, value in model.state_dict().items():
        if name not in trained:
            assert torch.equal(value, before[name]), f"{name} is frozen"

    again = showo_tiny.model(tmp_path / "words", understanding)
    align(
        again, data, recipe, seed=3, work_dir=tmp_path / "cut", stop_at=3
    )  # not at a checkpoint's step
    fresh = showo_tiny.model(tmp_path / "words", understanding)
    summary = align(fresh, data, recipe, seed=3, work_dir=tmp_path / "cut")
    assert summary.resumed_from == 3
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("straight", "cut")]
    assert logs[0] == logs[1]


def test_cached_and_live_features_agree(photographs: Path, tmp_path: Path) -> None:
    from reca.core.images import decode
    from reca.data.formats import open_dataset

    model, _, _ = prepared(photographs, tmp_path, "clip")
    dataset = open_dataset("folder", photographs)
    pictures = [decode(dataset[i].image, name=dataset[i].id) for i in range(len(dataset))]
    stored = cache.open_cache(tmp_path / "draw", verify=True).rows(range(6))
    for name, value in model.encode(pictures, "draw").items():
        torch.testing.assert_close(stored[name].to(value.dtype), value, rtol=0, atol=0)
