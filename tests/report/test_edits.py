"""The page's section on edits: true scores of true pictures, both chance levels, and what each arm made."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reca.config.schema import BenchmarkConfig
from reca.core import artifacts
from reca.evaluation.sample_edits import asked_for, score_edits
from reca.evaluation.tasks.laptop_prompts import sample_key
from reca.inference.imageset import ImageSetWriter
from reca.report import collect, page, pictures, sections
from reca.toyworld.scenes import draw_pixels

SECTION = BenchmarkConfig(kind="laptop_edit", prompts=4)
SKILL = {
    "base": 1,
    "reca": 3,
}  # of every four edits, how many are right; the others are left unchanged


@pytest.fixture
def model(tmp_path):
    for arm, right in SKILL.items():
        for seed in (0, 1):
            folder = tmp_path / "tiny" / f"{arm}-{seed}" / "laptop_edit" / "test"
            with artifacts.Stage("generate", folder / "samples", inputs={}, section={}) as stage:
                with ImageSetWriter(stage.staging / "images.tar") as writer:
                    for number, one in enumerate(asked_for(SECTION, "test", [2.0])[1]):
                        scene = one.edit.target if number % 4 < right else one.edit.source
                        image = Image.fromarray(draw_pixels(scene))
                        writer.add(
                            sample_key(2.0, one.id), 0, image, {"prompt": one.edit.instruction}
                        )
                described = {
                    "run": f"{arm}-{seed}",
                    "split": "test",
                    "seed": seed,
                    "guidance": [2.0],
                }
                artifacts.write_json(stage.staging / "samples.json", described)
            with artifacts.Stage("score", folder / "scores", inputs={}, section={}) as stage:
                score_edits(SECTION, folder / "samples", stage.staging)
    return tmp_path / "tiny"


def test_outcomes_by_arm_and_kind(model):
    found = collect.edits_report(
        model, "laptop_edit", {"base": {"edit": 2.0}, "reca": {"edit": 2.0}}
    )
    rows = {row["name"]: row for row in found["outcomes"]}
    for name in ("edit", "edit_followed", "edit_add"):
        assert [rows[name][arm]["mean"] for arm in SKILL] == [0.25, 0.75]
    assert rows["edit"]["primary"] and not rows["edit_kept"]["primary"]
    assert rows["edit_kept"]["base"]["mean"] == 1 and rows["edit"]["base"]["guidance"] == 2.0
    gap = rows["edit"]["differences"]["reca - base"]
    assert gap["mean"] == 0.5 and gap["over_items"]["mean"] == pytest.approx(0.5)
    assert collect.edits_report(model, "laptop_edit", {"base": {"dense": 1.0}})["chosen"] == {
        arm: {"edit": 2.0} for arm in SKILL
    }  # one guidance, so none was chosen


def test_the_section_shows_scores_chance_and_pictures(model):
    found = collect.edits_report(
        model, "laptop_edit", {"base": {"edit": 2.0}, "reca": {"edit": 2.0}}
    )
    rows = {row["name"]: row for row in found["outcomes"]}
    view = sections._edits({"edits": found}, rows, list(SKILL), {"prompts": 4, "seed": 0})
    assert [row["name"] for row in view["table"]][:3] == ["edit", "edit_followed", "edit_kept"]
    assert view["table"][2]["chances"][0] == 1.0 and "<svg" in view["lead"]["figure"]
    shown = pictures.edited(found, {"prompts": 4, "seed": 0})
    assert [row["title"] for row in shown] == ["Recolour", "Remove", "Add", "Replace", "Move"]
    card = shown[0]["cards"][1]
    assert [p["name"] for p in card["pictures"]] == ["Source", "Base", "RecA"]
    assert [p["score"] for p in card["pictures"]] == [None, 0, 1]
    assert np.all([card["caption"].startswith("make the") for card in shown[0]["cards"]])


def test_an_experiment_without_edits_has_no_such_section():
    assert page.edit_benchmark({"benchmarks": {"laptop": {"kind": "laptop"}}}) is None
    assert page.edit_benchmark({"benchmarks": {"e": {"kind": "laptop_edit"}}}) == "e"
