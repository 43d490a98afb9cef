"""The laptop world's examiner and scores: exact on true scenes, fair on chance, blind to what it is not asked."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from reca.config.schema import BenchmarkConfig, Tested
from reca.evaluation.choose import requested
from reca.evaluation.observers import examiner as observer
from reca.evaluation.observers.view import View
from reca.evaluation.tasks import laptop, laptop_edit, laptop_prompts
from reca.inference.items import Prompt
from reca.toyworld import examiner
from reca.toyworld.scenes import COLOURS, SHAPE_NAMES, SHAPES, Scene, Thing, draw_pixels, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    generator = np.random.default_rng(7)
    return [draw_scene(generator) for _ in range(2000)]


def test_examiner_reads_true_scenes(scenes: list[Scene]) -> None:
    right = [examiner.same_scene(examiner.detect(draw_pixels(scene)), scene) for scene in scenes]
    assert np.mean(right) >= 0.995


def test_examiner_reads_noisy_scenes(scenes: list[Scene]) -> None:
    noise = np.random.default_rng(8)
    right = []
    for scene in scenes[:500]:
        pixels = draw_pixels(scene) + noise.normal(0, 0.05 * 255, (16, 16, 3))
        seen = examiner.detect(np.clip(pixels, 0, 255).astype(np.uint8))
        right.append(examiner.same_scene(seen, scene))
    assert np.mean(right) >= 0.995


@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_object_in_every_shift(shape: str, colour: str) -> None:
    for place, x, y in itertools.product(range(4), (0, 1), (0, 1)):
        scene = Scene((Thing(place, shape, colour, x, y),))
        assert examiner.same_scene(examiner.detect(draw_pixels(scene)), scene)


def test_shapes_stay_apart() -> None:
    for (a, first), (_, second) in itertools.permutations(SHAPES.items(), 2):
        name, overlap, _ = examiner.best_shape(first)
        assert (name, overlap) == (a, 1.0)
        assert (first & second).sum() / (first | second).sum() < 0.7


def test_a_blank_picture_and_noise_show_nothing() -> None:
    assert examiner.detect(np.zeros((16, 16, 3), np.uint8)) == []
    assert examiner.detect(np.full((16, 16, 3), 240, np.uint8)) == []


@pytest.mark.parametrize("factor", [2, 3, 16])
def test_an_enlarged_scene_reads_as_the_scene(scenes: list[Scene], factor: int) -> None:
    for scene in scenes[:50]:
        small = draw_pixels(scene)
        side = factor * len(small)
        seen = examiner.detect(small)
        for how in (Image.Resampling.NEAREST, Image.Resampling.BOX):
            large = np.asarray(Image.fromarray(small).resize((side, side), how))
            assert examiner.detect(large) == seen
    noise = np.random.default_rng(9).integers(0, 256, (16, 16, 3), np.uint8)
    assert examiner.at_scene_size(noise) is noise
    mean = examiner.at_scene_size(np.kron(noise, np.ones((factor, factor, 1), np.uint8)))
    assert np.array_equal(mean, noise)


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (32, 16)])
def test_an_image_of_another_size_is_refused_by_name(tmp_path: Path, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    shown = {("two-3", 1): file.getvalue()}
    benchmark = BenchmarkConfig(kind="laptop_edit", prompts=1)
    view = View(benchmark, [], shown, {}, 1, tmp_path, tmp_path, tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError) as caught:
        observer.observe(view)
    said = f"benchmark laptop_edit: image two-3/1: {size[0]} x {size[1]} pixels: the examiner reads"
    assert str(caught.value).startswith(said)


def test_true_pictures_of_a_prompt_score_one() -> None:
    scene = Scene((Thing(0, "circle", "red"), Thing(1, "square", "blue")))
    seen = examiner.detect(draw_pixels(scene))
    facts = {
        "include": [
            {"class": "square", "count": 1},
            {"class": "circle", "count": 1, "position": ["left of", 0]},
        ]
    }
    assert laptop.score_prompt(Prompt("p", "", "position", {"tag": "position", **facts}), seen) == 1
    facts["include"][1]["position"] = ["right of", 0]
    assert laptop.score_prompt(Prompt("p", "", "position", {"tag": "position", **facts}), seen) == 0


def test_counting_is_exact_but_extra_objects_are_forgiven_elsewhere() -> None:
    three = examiner.detect(draw_pixels(Scene(tuple(Thing(i, "bolt", "cyan") for i in range(3)))))
    two = {
        "tag": "counting",
        "include": [{"class": "bolt", "count": 2}],
        "exclude": [{"class": "bolt", "count": 3}],
    }
    assert laptop.score_prompt(Prompt("p", "", "counting", two), three) == 0
    one = {"tag": "single_object", "include": [{"class": "bolt", "count": 1}]}
    assert laptop.score_prompt(Prompt("p", "", "single_object", one), three) == 1


def test_the_strict_rule_forgives_no_extra_object() -> None:
    clutter = Scene((Thing(0, "bolt", "cyan"), Thing(1, "flag", "red")))
    one = Prompt(
        "p",
        "",
        "single_object",
        {"tag": "single_object", "include": [{"class": "bolt", "count": 1}]},
    )
    for things, official, strict in (
        (clutter.things, 1, 1 - 1),
        (clutter.things[:1], 1, 1),
        (clutter.things[1:], 0, 0),
    ):
        seen = examiner.detect(draw_pixels(Scene(things)))
        assert (laptop.score_prompt(one, seen), laptop.strict_score(one, seen)) == (
            official,
            strict,
        )
    two = [
        {"class": "bolt", "count": 1, "color": "cyan"},
        {"class": "flag", "count": 1, "color": "red"},
    ]
    both = Prompt("p", "", "color_attr", {"tag": "color_attr", "include": two})
    assert laptop.strict_score(both, examiner.detect(draw_pixels(clutter))) == 1
    means = laptop.strict_means([(task, 0.5) for task in laptop_prompts.GENEVAL_TASKS])
    assert means["geneval_strict"] == 0.5 and means["geneval_strict.counting"] == 0.5
    assert "geneval_strict" not in laptop.strict_means([("counting", 1.0)])


CHOICE = {
    "chosen": {
        "base": {"dense": 2.0, "geneval": 5.0, "geneval_strict": 1.0},
        "reca": {"dense": 1.0, "geneval": 2.0, "geneval_strict": 2.0},
    },
    "levels": [1.0, 2.0, 5.0, 8.0],
}


def levels_by_task(
    section: BenchmarkConfig, names: dict[str, float]
) -> dict[str, list[tuple[float, int]]]:
    """Task -> guidance level and how many of the task's test prompts are sampled there."""
    found: dict[str, list[tuple[float, int]]] = {}
    for level, asked in laptop_prompts.plan(section, "test", names).prompts.items():
        for task in dict.fromkeys(prompt.task for prompt in asked):
            found.setdefault(task, []).append((level, sum(p.task == task for p in asked)))
    return found


def test_test_prompts_are_sampled_at_the_chosen_guidance_and_where_else_it_is_asked() -> None:
    plain = BenchmarkConfig(kind="laptop", prompts=4, seed=5)
    found = levels_by_task(plain, requested(CHOICE, "reca"))
    assert found["dense"] == found["dense_placed"] == [(1.0, 4)] and found["counting"] == [(2.0, 4)]
    both = BenchmarkConfig(kind="laptop", prompts=4, seed=5, base_guidance=True)
    found = levels_by_task(both, requested(CHOICE, "reca", at_base=True))
    assert found["dense"] == [(1.0, 4), (2.0, 4)]
    assert found["counting"] == [(1.0, 4), (2.0, 4), (5.0, 4)]
    curved = BenchmarkConfig(kind="laptop", prompts=4, seed=5, curve_prompts=1)
    found = levels_by_task(curved, requested(CHOICE, "reca", curve=True))
    assert found["dense"] == [(1.0, 4), (2.0, 1), (5.0, 1), (8.0, 1)]


def test_the_test_split_may_have_seeds_of_its_own() -> None:
    sizes = {
        "prompts": 2,
        "development_prompts": 2,
        "questions": 6,
        "reconstructions": 2,
        "seed": 5,
    }
    plain = BenchmarkConfig(kind="laptop", **sizes)
    seeds = {"prompts": 6, "scenes": 7, "questions": 8}
    other = BenchmarkConfig(kind="laptop", **sizes, test_seeds=seeds)
    levels = [1.0]
    assert laptop_prompts.plan(other, "development", levels) == laptop_prompts.plan(
        plain, "development", levels
    )
    found = laptop_prompts.plan(other, "test", levels)
    assert found.prompts[1.0] == laptop_prompts.prompts("test", 2, 6)
    assert list(found.scenes) == laptop_prompts.held_out_scenes("test", 2, 7)
    asked = laptop_prompts.held_out_questions(found.scenes, 3, "test", 8)
    assert list(found.questions) == asked
    edited = BenchmarkConfig(kind="laptop_edit", prompts=1, seed=5, test_seeds={"edits": 9})
    assert laptop_edit.asked_for(edited, "test", [2.0])[1] == laptop_edit.edits("test", 1, 9)
    both = laptop_edit.asked_for(edited, "test", {"edit": 2.0, "edit@base": 3.0, "dense": 1.0})
    assert both[0] == [2.0, 3.0]


def test_the_protocol_states_its_seeds_and_how_they_were_made() -> None:
    """Nothing is drawn from them here: a recorded run is the first to do so."""
    root = Path(__file__).parents[2]
    page = (root / "docs/laptop_protocol.md").read_text()
    found: dict[str, int] = {}
    for name in ("laptop_protocol", "laptop_edit_protocol"):
        plain = yaml.safe_load((root / f"config/benchmark/{name}.yaml").read_text())
        found |= plain["test_seeds"]
        assert plain["base_guidance"] and plain["defaults"][0] == name.removesuffix("_protocol")
    assert set(found) == set(get_args(Tested))
    for what, seed in found.items():
        digest = hashlib.sha256(f"docs/laptop_protocol.md {what}".encode()).hexdigest()
        assert seed == int(digest[:6], 16) and f"| {seed} |" in page


def test_a_summary_is_at_the_guidance_chosen_for_the_arm() -> None:
    section = BenchmarkConfig(kind="laptop", prompts=1, seed=5, base_guidance=True)
    names = requested(CHOICE, "reca", at_base=True)
    evidence = [
        {
            "id": key,
            "sample": index,
            "detections": [dict.fromkeys(("class", "color", "place", "box"), 0)] * int(level),
        }
        for key, index in laptop_prompts.plan(section, "test", names).entries()
        for level in [float(key.split("/")[0])]
    ]
    for row in evidence:
        for number, seen in enumerate(row["detections"]):
            row["detections"][number] = {**seen, "score": 1.0, "box": [0, 0, 1, 1]}
    sampled = {"split": "test", "chosen": names, "guidance": []}
    graded = laptop.grade(section, sampled, evidence, {})
    assert set(graded.by_guidance) == {"1.0", "2.0", "5.0"}
    assert graded.summary["dense"] == graded.by_guidance["1.0"]["dense"]
    assert graded.summary["geneval_strict"] == graded.by_guidance["2.0"]["geneval_strict"]


def test_facts_are_matched_one_to_one() -> None:
    fact = {"class": "flag", "color": "red"}
    one = [{"class": "flag", "color": "red", "place": 0}]
    assert laptop.share_of_facts([fact, fact], one) == 0.5
    assert laptop.share_of_facts([fact, fact], one * 2) == 1
    assert laptop.share_of_facts([{**fact, "place": 1}], one) == 0


def test_splits_are_fixed_and_apart() -> None:
    test, again = (laptop_prompts.prompts("test", 30, 3) for _ in range(2))
    development = laptop_prompts.prompts("development", 30, 3)
    assert test == again
    dense = [{p.text for p in split if p.task == "dense"} for split in (test, development)]
    assert not dense[0] & dense[1]
    assert laptop_prompts.prompts("test", 30, 4) != test
    with pytest.raises(ValueError, match="choose one of: development, test"):
        laptop_prompts.prompts("train", 1, 0)


def test_chance_levels_are_low() -> None:
    chance = laptop.chance("test", 50, 0, pictures=600)
    assert chance["single_object"] < 0.35
    assert chance["geneval_strict"] < chance["geneval"]
    assert all(chance[task] < 0.12 for task in chance if task not in ("single_object", "geneval"))
    assert set(chance) >= {f"geneval_strict.{task}" for task in laptop_prompts.GENEVAL_TASKS}


def test_questions_are_answered_by_their_scene() -> None:
    scenes = laptop_prompts.held_out_scenes("test", 20, 0)
    asked = laptop_prompts.held_out_questions(scenes, 3, "test", 0)
    assert {q.kind for q in asked} >= {"describe", "colour", "exist"}
    assert len({q.id for q in asked}) == len(asked)
    assert laptop.same_answer(" The  Circle", "the circle")
