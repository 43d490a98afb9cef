"""The four tasks, the control arms, and the choice of samples, prompts and turns."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from omegaconf import OmegaConf
from transformers import get_cosine_schedule_with_warmup

from reca.align.batches import FeatureData, pick_prompts, pick_turns, plan_step, with_rows
from reca.align.distributed import ProcessGroup
from reca.align.objective import derangement, in_random_basis, task_loss
from reca.align.schedule import learning_rate
from reca.align.training_data import feature_data
from reca.commands import arguments
from reca.config.recipe import ARMS, Recipe, TaskRecipe, for_arm
from reca.config.schema import DataSource
from reca.core.rng import generator
from reca.core.structure import build
from reca.models.contract import reconstruction_loss, text_to_image_loss
from tests.align.runs import recipe
from tests.align.toy import Rows, Toy, toy_data

CPU = torch.device("cpu")


def planned(task: str, *, step: int = 0, processes: ProcessGroup | None = None, **changes):
    model, data = Toy(), toy_data()
    chosen = recipe(**{"tasks": {task: TaskRecipe(1.0, 4)}, "accumulation": 1, **changes})
    plan = plan_step(model, data, chosen, seed=0, step=step, processes=processes or ProcessGroup())
    return model, with_rows(plan[0], data, CPU)


def test_reca_draws_the_image_from_its_own_embeddings():
    model, batch = planned("reca")
    expected = reconstruction_loss(model, batch.texts, batch.features, batch.noise)
    assert torch.equal(task_loss(model, batch).total, expected.total)
    rows = toy_data().draw.rows(batch.indices)
    assert all(torch.equal(batch.features[name], rows[name]) for name in rows)


def test_t2i_uses_the_captions_and_no_embeddings():
    model, batch = planned("t2i")
    assert list(batch.texts) == [f"caption {index}" for index in batch.indices]
    expected = text_to_image_loss(model, batch.texts, batch.features, batch.noise)
    blind = {**batch.features, "understanding": torch.full((4, 5), float("nan"))}
    assert torch.equal(task_loss(model, replace(batch, features=blind)).total, expected.total)


def test_text_has_no_image():
    _, batch = planned("text")
    assert batch.features == {} and batch.count == 4 * len("there")


def test_shuffled_control_keeps_the_target_and_swaps_the_condition():
    model, batch = planned("reca", shuffle_condition=True)
    assert not (batch.partner == torch.arange(4)).any()
    others = [batch.indices[row] for row in batch.partner]
    seen = toy_data().draw.rows(others)["understanding"]
    expected = reconstruction_loss(
        model, batch.texts, {**batch.features, "understanding": seen}, batch.noise
    )
    assert torch.equal(task_loss(model, batch).total, expected.total)
    own = task_loss(model, replace(batch, partner=None))
    assert not torch.equal(own.total, expected.total)


def test_arms_share_images_and_masks():
    plain = recipe(tasks={"reca": TaskRecipe(1.0, 4), "i2t": TaskRecipe(1.0, 2)})
    plans = {}
    for arm in ("reca", "shuffled", "sft"):
        arm_recipe = for_arm(plain, arm)
        plans[arm] = plan_step(
            Toy(), toy_data(), arm_recipe, seed=0, step=5, processes=ProcessGroup()
        )
    drawn = {arm: [b for b in plan if b.noise is not None] for arm, plan in plans.items()}
    assert {b.task for b in drawn["sft"]} == {"t2i"} and len(plans["sft"]) == len(plans["reca"])
    for arm in ("shuffled", "sft"):
        for own, other in zip(drawn["reca"], drawn[arm], strict=True):
            assert own.indices == other.indices
            assert torch.equal(own.noise.mask, other.noise.mask)


def test_plain_training_has_the_kept_captions_in_addition():
    tasks = {"reca": TaskRecipe(1.0, 4), "i2t": TaskRecipe(0.5, 2), "t2i": TaskRecipe(0.25, 2)}
    expected = {"i2t": TaskRecipe(0.5, 2), "t2i": TaskRecipe(1.25, 6)}
    assert for_arm(recipe(tasks=tasks), "sft").tasks == expected
    unused = tasks | {"t2i": TaskRecipe(0.0, 2)}
    assert for_arm(recipe(tasks=unused), "sft").tasks["t2i"] == tasks["reca"]


def test_derangements_are_uniform_enough_and_never_fixed():
    drawn = generator(0, "test")
    seen = {tuple(derangement(4, drawn).tolist()) for _ in range(200)}
    assert len(seen) == 9 and all(row != value for each in seen for row, value in enumerate(each))
    with pytest.raises(ValueError, match="a batch of 1 has no other image"):
        derangement(1, drawn)


def test_ranks_and_micro_batches_deal_out_each_epoch_once():
    chosen = recipe(tasks={"reca": TaskRecipe(1.0, 2)}, accumulation=3)
    for size in (1, 2, 4):
        seen = []
        for step in range(11):
            for rank in range(size):
                processes = ProcessGroup(rank, size)
                for batch in plan_step(
                    Toy(), toy_data(11), chosen, seed=0, step=step, processes=processes
                ):
                    seen.extend(batch.indices)
        counts = [seen.count(index) for index in range(11)]
        assert counts == [len(seen) // 11] * 11


def test_one_rank_and_two_see_the_same_samples_per_step():
    for step in range(6):
        one = planned("reca", step=step)[1].indices
        half = {"tasks": {"reca": TaskRecipe(1.0, 2)}}
        two = [
            planned("reca", step=step, processes=ProcessGroup(rank, 2), **half)[1]
            for rank in range(2)
        ]
        assert sorted(one) == sorted(two[0].indices + two[1].indices)
    assert not torch.equal(two[0].noise.mask, two[1].noise.mask)


def test_prompts_per_sample_or_per_batch():
    bank = [f"prompt {index}" for index in range(50)]
    assert len(set(pick_prompts(bank, 20, "sample", generator(0)))) > 5
    assert len(set(pick_prompts(bank, 20, "batch", generator(0)))) == 1
    with pytest.raises(ValueError, match="bank is empty"):
        pick_prompts([], 2, "sample", generator(0))


def test_turns_are_subsampled_in_order():
    turns = [(str(index), "a") for index in range(9)]
    picks = [pick_turns([[turns]], 3, generator(seed))[0] for seed in range(20)]
    assert all(len(pick) == 3 and pick == sorted(pick) for pick in picks)
    assert len({tuple(pick) for pick in picks}) > 10
    assert pick_turns([[turns]], None, generator(0)) == [turns]
    several = {
        pick_turns([[[("one", "")], [("two", "")]]], 1, generator(s))[0][0] for s in range(20)
    }
    assert several == {("one", ""), ("two", "")}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"draw": Rows(3, 0), "draw_captions": ["a"]}, "draw_captions has 1 entries for 3 cached"),
        ({"read_conversations": [[[("q", "a")]]]}, "has 1 entries for 0 cached images"),
        ({"text_conversations": [[[]]]}, r"text_conversations\[0\] has no turn"),
    ],
)
def test_data_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FeatureData(**fields)


def test_reca_only_reconstructs_what_others_keep_as_captions():
    tasks = {"reca": TaskRecipe(1.0, 4), "t2i": TaskRecipe(0.5, 2), "i2t": TaskRecipe(1.0, 3)}
    found = for_arm(recipe(tasks=tasks), "reca_only")
    assert found.active() == {"reca": TaskRecipe(1.0, 6), "i2t": tasks["i2t"]}
    assert for_arm(recipe(tasks=tasks), "sft").active()["t2i"] == TaskRecipe(1.5, 6)
    with pytest.raises(ValueError, match=r"align.tasks.t2i = None: arm reca_only leaves out"):
        for_arm(recipe(tasks={"reca": TaskRecipe(1.0, 4)}), "reca_only")
    assert arguments.ARMS == ARMS


@pytest.mark.parametrize("arm", ARMS)
def test_no_arm_is_made_from_a_recipe_without_the_task_reca(arm):
    """A shuffled control without reca would be plain training under another name."""
    tasks = {"reca": TaskRecipe(0.0, 4), "i2t": TaskRecipe(1.0, 3)}
    with pytest.raises(ValueError, match=f"arm '{arm}' is made from the task reca"):
        for_arm(recipe(tasks=tasks), arm)


def test_template_only_is_told_nothing_of_the_image():
    _, own = planned("reca")
    model, batch = planned("reca", ablation="template_only")
    assert (batch.indices, batch.texts) == (own.indices, own.texts)
    told = text_to_image_loss(model, batch.texts, batch.features, batch.noise)
    assert torch.equal(task_loss(model, batch).total, told.total)
    assert planned("t2i", ablation="template_only")[1].ablation is None


def test_a_random_basis_keeps_the_information_and_loses_the_meaning():
    rows = {"target": torch.zeros(2, 3), "understanding": torch.randn(2, 5, 8)}
    turned = in_random_basis(rows)
    again = in_random_basis({"understanding": rows["understanding"].clone()})
    assert torch.equal(turned["understanding"], again["understanding"])  # the same for every batch
    products = [x["understanding"] @ x["understanding"].transpose(1, 2) for x in (rows, turned)]
    assert torch.allclose(*products, atol=1e-4)  # a rotation
    assert not torch.allclose(turned["understanding"], rows["understanding"])
    assert torch.equal(turned["target"], rows["target"])
    # BAGEL's condition of the VAE: the last axis is a side of the image
    latents = {"understanding": torch.ones(2, 8, 4, 4)}
    codes = {"understanding": torch.ones(2, 3).long()}
    for without in ({"target": rows["target"]}, codes, latents):
        with pytest.raises(ValueError, match="caches none; leave the arm out"):
            in_random_basis(without)
    model, batch = planned("reca", ablation="random_encoder")
    swapped = model.condition(batch.texts, in_random_basis(batch.features))
    expected = model.generation_loss(batch.features, swapped, batch.noise)
    assert torch.equal(task_loss(model, batch).total, expected.total)


def test_missing_data_is_named():
    chosen = recipe(tasks={"t2i": TaskRecipe(1.0, 2)})
    with pytest.raises(ValueError, match="needs data of role 'reconstruct'"):
        plan_step(Toy(), FeatureData(), chosen, seed=0, step=0, processes=ProcessGroup())
    with pytest.raises(ValueError, match="t2i needs captions"):
        plan_step(
            Toy(), FeatureData(draw=Rows(3, 0)), chosen, seed=0, step=0, processes=ProcessGroup()
        )


# ---- recipe and schedule -----------------------------------------------------------------------
def test_tasks_without_weight_cost_nothing():
    chosen = recipe(tasks={"t2i": TaskRecipe(0.0, 2), "reca": TaskRecipe(1.0, 2)})
    plan = plan_step(Toy(), toy_data(), chosen, seed=0, step=0, processes=ProcessGroup())
    assert {batch.task for batch in plan} == {"reca"}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"tasks": {"draw": TaskRecipe()}},
            r"align.tasks.draw: unknown name; .*allowed: edit, i2t, reca",
        ),
        ({"tasks": {"reca": TaskRecipe(0.0)}}, "align.tasks .* weight above 0"),
        ({"tasks": {"reca": TaskRecipe(1.0, 0)}}, "align.tasks.reca.batch = 0"),
        (
            {"tasks": {"reca": TaskRecipe(1.0, 1)}, "shuffle_condition": True},
            "at least 2 with shuffle_condition",
        ),
        ({"precision": "fp16"}, "align.precision = 'fp16': must be one of auto, fp32, bf16"),
        ({"lr": 0.0}, "align.lr = 0.0: must be above 0"),
        ({"ema": 1.0}, "align.ema = 1.0"),
        ({"betas": [0.9]}, r"align.betas = \[0.9\]: must hold at least 2"),
        ({"keep": 0}, "align.keep = 0: must be at least 1"),
    ],
)
def test_wrong_recipes_are_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes).validate()


def test_recipe_passes_through_omegaconf():
    config = OmegaConf.merge(asdict(Recipe()), {"tasks": {"i2t": {"batch": 2}}})
    made = build(Recipe, OmegaConf.to_container(config))
    assert made == Recipe(tasks={"reca": TaskRecipe(), "i2t": TaskRecipe(1.0, 2)})


def test_schedule_is_the_published_formula():
    chosen = Recipe(lr=3e-4, warmup=5, steps=40)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=chosen.lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, chosen.warmup, chosen.steps)
    for step in range(chosen.steps):
        assert learning_rate(chosen, step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_a_task_without_its_data_is_named():
    told = recipe(tasks={"text": TaskRecipe(1.0, 4)})
    with pytest.raises(ValueError, match=r"role 'text', but the configuration has only \[\]; add"):
        feature_data(told, {}, {}, {}, seed=0, ranks=1)
    with pytest.raises(ValueError, match="the recipe needs --data text=DIR"):
        feature_data(told, {"text": DataSource(kind="folder")}, {}, {}, seed=0, ranks=1)


def test_schedule_variants():
    constant = Recipe(lr=1.0, warmup=4, schedule="constant")
    assert [learning_rate(constant, step) for step in (0, 1, 4, 999)] == [0.0, 0.25, 1.0, 1.0]
    floored = Recipe(lr=1.0, floor=0.1, steps=10, horizon=8)
    assert learning_rate(floored, 8) == learning_rate(floored, 9) == pytest.approx(0.1)
    late = Recipe(lr=5e-7, warmup=1000, steps=5000, horizon=1_000_000)
    assert learning_rate(late, 4999) == pytest.approx(5e-7, rel=1e-4)  # showo.md 5
