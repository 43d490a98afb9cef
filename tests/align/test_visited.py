"""A cache of the images that a run reads trains as one of the complete data set does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reca.align.batches import FeatureData, plan_step
from reca.align.distributed import ProcessGroup
from reca.align.training_data import feature_data
from reca.config.compose import load
from reca.config.recipe import Recipe, TaskRecipe, for_arm, visits
from reca.config.schema import DataSource
from reca.config.validate import cache_visits
from reca.data.formats import open_dataset
from reca.data.order import Visits
from reca.data.role import Role
from reca.features.build import build, open_cache
from tests.toy_model import CODE, DrawingToy, png

IMAGES = 40
RECIPE = Recipe(
    tasks={"reca": TaskRecipe(1.0, 2), "t2i": TaskRecipe(1.0, 1), "i2t": TaskRecipe(1.0, 2)},
    steps=3,
    accumulation=2,
)
ROLES = {Role.RECONSTRUCT: "draw", Role.ANSWER: "read"}
SOURCE = DataSource(kind="parquet")


def write(folder: Path, broken: int | None = None) -> Path:
    """A parquet file of pictures with captions and conversations; one may not be an image."""
    folder.mkdir()
    rows = [
        {
            "id": str(number),
            "image": b"no picture" if number == broken else png(number),
            "prompt": f"picture {number}",
            "conversations": [[[f"what is {number} ?", f"picture {number}"]]],
        }
        for number in range(IMAGES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=7)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "pictures")


def caches(folder: Path, root: Path, read: dict[str, Visits | None]) -> dict[str, Path]:
    """A cache of each use."""
    for use, chosen in read.items():
        data = open_dataset("parquet", folder)
        build(DrawingToy(), data, root / use, use=use, code=CODE, visits=chosen, max_unreadable=0.1)
    return {use: root / use for use in read}


def data_of(recipe: Recipe, folder: Path, made: dict[str, Path], **run: int) -> FeatureData:
    sources = {role.value: SOURCE for role in ROLES}
    folders = {role.value: folder for role in ROLES}
    return feature_data(recipe, sources, folders, made, **run)


def read_by(recipe: Recipe, seeds: list[int], ranks: int) -> dict[str, Visits | None]:
    return {use: visits([recipe], role, seeds, ranks) for role, use in ROLES.items()}


@pytest.mark.parametrize("order", ["own", "published"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_is_as_from_a_complete_cache(folder, tmp_path, order, ranks):
    recipe = replace(RECIPE, order=order)
    some = caches(folder, tmp_path / "some", read_by(recipe, [4, 5], ranks))
    complete = caches(folder, tmp_path / "all", dict.fromkeys(ROLES.values()))
    assert len(open_cache(some["draw"])) < IMAGES == len(open_cache(complete["draw"]))
    model = DrawingToy()
    for seed in (4, 5):
        few, whole = (data_of(recipe, folder, c, seed=seed, ranks=ranks) for c in (some, complete))
        for step in range(recipe.steps):
            for rank in range(ranks):
                processes = ProcessGroup(rank=rank, size=ranks)
                for batch in plan_step(
                    model, whole, recipe, seed=seed, step=step, processes=processes
                ):
                    role = Role.ANSWER if batch.task == "i2t" else Role.RECONSTRUCT
                    for name, rows in whole.features(role, batch.indices).items():
                        assert torch.equal(rows, few.features(role, batch.indices)[name])
                    if role is Role.RECONSTRUCT:
                        assert few.captions(batch.indices) == whole.captions(batch.indices)
                    else:
                        turns = [data.conversations(role, batch.indices) for data in (few, whole)]
                        assert turns[0] == turns[1]
        plans = [
            plan_step(model, data, recipe, seed=seed, step=1, processes=ProcessGroup())
            for data in (few, whole)
        ]
        assert [b.indices for b in plans[0]] == [b.indices for b in plans[1]]


@pytest.mark.parametrize(
    ("changed", "run", "lacks"),
    [
        ({}, {"seed": 6, "ranks": 1}, "this run reads seed 6"),
        ({"steps": 4}, {"seed": 4, "ranks": 1}, "this run reads 16 samples"),
        ({}, {"seed": 4, "ranks": 2}, "this run reads 24 samples"),
        ({"order": "published"}, {"seed": 4, "ranks": 1}, "reads order 'published' of 'draw'"),
    ],
)
def test_a_run_that_reads_more_is_refused(folder, tmp_path, changed, run, lacks):
    made = caches(folder, tmp_path, read_by(RECIPE, [4], 1))
    with pytest.raises(ValueError, match=f"{lacks}; build the cache for this run"):
        data_of(replace(RECIPE, **changed), folder, made, **run)


def test_an_unreadable_image_gives_way_to_the_next(folder, tmp_path):
    read = visits([RECIPE], Role.RECONSTRUCT, [4], 1)
    places = read.of(IMAGES)
    assert len(places) == 12
    broken, after = places[2], places[3]
    copied = write(tmp_path / "copied", broken)
    recipe = replace(RECIPE, tasks={"reca": TaskRecipe(1.0, 2), "t2i": TaskRecipe(1.0, 1)})
    data = data_of(recipe, copied, caches(copied, tmp_path, {"draw": read}), seed=4, ranks=1)
    assert data.size(Role.RECONSTRUCT) == IMAGES
    assert data.captions([broken, after]) == [f"picture {after}"] * 2


def test_the_workflow_asks_for_what_all_arms_and_seeds_read():
    experiment = load("paper_showo_512", ["seeds=[1,2]", "models.showo_clip_512.seeds=[]"])
    read = cache_visits(experiment, "showo_clip_512", "draw")
    assert read == Visits(order="own", stream="draw", seeds=(1, 2), samples=50_000)
    everything = load("paper_showo_512", ["models.showo_clip_512.cache_rows=all"])
    assert cache_visits(everything, "showo_clip_512", "draw") is None
    captions = RECIPE.tasks | {"reca": TaskRecipe(1.0, 4)}
    sft = for_arm(replace(RECIPE, tasks=captions), "sft")
    assert visits([sft], Role.RECONSTRUCT, [0], 1).samples == 3 * 2 * 5, "kept captions are added"
