"""The laptop's edit benchmark: exact on true targets, blind to nothing, and its stages with a model that cheats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from reca.config.schema import BenchmarkConfig, Sampler
from reca.core.images import decode
from reca.evaluation.observe import observe, view_of
from reca.evaluation.sample import sample
from reca.evaluation.score import score
from reca.evaluation.tasks import laptop_edit
from reca.evaluation.tasks.laptop_edit import asked_for, chance, edits, score_edit
from reca.evaluation.tasks.laptop_prompts import scene_png
from reca.inference.generate import Origin
from reca.toyworld import examiner
from reca.toyworld.edits import EDITS, Edit
from reca.toyworld.scenes import Scene, Thing, draw_pixels


def seen(scene: Scene) -> list:
    return examiner.detect(draw_pixels(scene))


def test_true_targets_are_right_and_sources_are_not():
    asked = edits("test", 200, seed=5)
    assert len(asked) == 200 * len(EDITS) and len({one.id for one in asked}) == len(asked)
    right = np.mean([score_edit(one.edit, seen(one.edit.target))["edit"] for one in asked])
    assert right >= 0.995
    for one in asked:
        assert score_edit(one.edit, seen(one.edit.source))["edit_followed"] == 0, (
            one.edit.instruction
        )


RED, BLUE = Thing(0, "circle", "red"), Thing(0, "circle", "blue")
OTHER = Thing(3, "square", "green")
RECOLOUR = Edit("recolour", "make the circle blue", Scene((RED, OTHER)), Scene((BLUE, OTHER)), (0,))


@pytest.mark.parametrize(
    "things, followed, kept",
    [
        ((BLUE, OTHER), 1, 1),
        ((RED, OTHER), 0, 1),
        ((BLUE,), 1, 0),
        ((BLUE, Thing(1, "tee", "red"), OTHER), 1, 0),
        ((BLUE, Thing(3, "square", "red")), 1, 0),
        ((Thing(0, "square", "blue"), OTHER), 0, 1),
        ((), 0, 0),
    ],
    ids=["right", "unchanged", "lost", "one more", "another touched", "wrong shape", "empty"],
)
def test_followed_and_kept_are_told_apart(things, followed, kept):
    found = score_edit(RECOLOUR, seen(Scene(things)))
    assert found == {"edit": followed * kept, "edit_followed": followed, "edit_kept": kept}


def test_a_move_must_leave_its_old_place():
    move = Edit("move", "...", Scene((RED,)), Scene((Thing(2, "circle", "red"),)), (0, 2))
    both = Scene((RED, Thing(2, "circle", "red")))
    assert score_edit(move, seen(both)) == {"edit": 0, "edit_followed": 0, "edit_kept": 1}


def test_chance_is_measured():
    found = chance("test", 30, seed=0)
    assert found["unchanged"]["edit"] == 0 and found["unchanged"]["edit_kept"] == 1
    assert found["random"]["edit"] < 0.01 and 0 < found["random"]["edit_followed"] < 0.2


def test_splits_never_meet_and_need_a_choice():
    texts = [{one.edit.source for one in edits(split, 60, 0)} for split in ("development", "test")]
    assert len(texts[0] & texts[1]) < 0.1 * len(texts[0])  # small scenes can coincide, draws do not
    with pytest.raises(ValueError, match="split 'train' is not known"):
        edits("train", 1, 0)
    section = BenchmarkConfig(kind="laptop_edit", prompts=2, development_prompts=3)
    assert len(asked_for(section, "development", [1.0, 2.0])[1]) == 15
    assert asked_for(section, "test", {"edit": 3.0, "dense": 1.0})[0] == [3.0]
    with pytest.raises(ValueError, match="one guidance"):
        asked_for(section, "test", [1.0, 2.0])


class Painter:
    """Edits perfectly above guidance 1, and gives the source back below; it looks the instruction up."""

    family = "painter"
    training = False

    def __init__(self, section: BenchmarkConfig, split: str) -> None:
        found = asked_for(section, split, [1.0])[1]
        self.known = {(scene_png(o.edit.source), o.edit.instruction): o.edit.target for o in found}

    def eval(self):
        return self

    train = eval

    def __getattr__(self, name):
        raise AttributeError(name)

    def sample_edit_noise(self, *arguments):
        raise AssertionError("it never trains")

    edit_loss = sample_edit_noise

    def edit(self, images, instructions, sampling, generators):
        assert len(images) == len(generators)
        if sampling.guidance <= 1:
            return list(images)
        by_pixels = {
            (decode(k, name="source").tobytes(), t): scene for (k, t), scene in self.known.items()
        }
        found = [by_pixels[i.tobytes(), t] for i, t in zip(images, instructions, strict=True)]
        return [Image.fromarray(draw_pixels(scene)) for scene in found]


def test_the_stages_score_what_a_model_made(tmp_path):
    section = BenchmarkConfig(kind="laptop_edit", prompts=3, development_prompts=4)
    model, origin = Painter(section, "development"), Origin("m", "laptop_edit", 0)
    model.train = lambda mode=True: model
    counts = sample(
        model, section, Sampler(steps=2, guidance=[1.0, 2.0]), origin, {}, run="base-0",
        split="development", work=tmp_path / "work", out=tmp_path,
    )  # fmt: skip
    assert counts == {"pictures": 40}
    places = {"work": tmp_path, "out": tmp_path, "ledger": tmp_path / "ledger"}
    assert observe(view_of(section, tmp_path, {}, **places)) == {"evidence": 40}
    found = score(section, {}, [tmp_path], [tmp_path], tmp_path)
    levels = found["by_guidance"]
    assert levels["2.0"] == dict.fromkeys(levels["2.0"], 1.0)
    assert levels["1.0"]["edit"] == 0 and levels["1.0"]["edit_kept"] == 1
    assert set(levels["1.0"]) == {*laptop_edit.SCORES, *(f"edit_{k}" for k in EDITS)}
    assert found["summary"] == {}  # nothing was sampled at one level alone
    assert found["guidance"] == [1.0, 2.0] and found["label"] == "laptop_edit(examiner)"
    assert found["coverage"]["scored"] == found["coverage"]["expected"] == 40
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and {row["kind"] for row in rows} == {"edit"}


def test_guidance_is_chosen_for_edits_beside_drawing():
    from reca.evaluation.choose import choose

    def row(run, **levels):
        return {"run": run, "split": "development", "by_guidance": levels}

    found = choose(
        [
            row("base-0", **{"1.0": {"edit": 0.1}, "2.0": {"edit": 0.3}}),
            row(
                "base-0",
                **{"1.0": {"dense": 0.4, "geneval": 0.2}, "2.0": {"dense": 0.1, "geneval": 0.2}},
            ),
        ]
    )
    assert found["chosen"] == {"base": {"edit": 2.0, "dense": 1.0, "geneval": 1.0}}
