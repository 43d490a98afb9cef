"""The picture of a recorded run: its own first images beside their targets, in equal bytes, shown on the page."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reca.core import artifacts
from reca.evaluation.tasks.laptop import score_prompt
from reca.evaluation.tasks.laptop_prompts import (
    STRICT,
    held_out_scenes,
    prompts,
    reconstruction_key,
    sample_key,
)
from reca.inference.imageset import ImageSet
from reca.report import before_after, collect, readme
from reca.toyworld import examiner
from reca.toyworld.scenes import draw_pixels
from tests.report.tree import MODEL, Tree, experiment

TEST_SEEDS = {"prompts": 71, "scenes": 72, "questions": 73}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A finished run that was read at the base's guidance, in a folder of its own."""
    plain = experiment()
    plain["benchmarks"]["laptop"] |= {"base_guidance": True, "curve_prompts": 2}
    made = Tree(plain)
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made.write()
        made.report()
    made.root = folder / made.root
    made.model = folder / made.model
    return made


@pytest.fixture
def blocks(tree: Tree) -> list[before_after.Block]:
    test = collect.evaluated(tree.model, "laptop", at_base=True)
    return before_after.blocks(test, tree.benchmark)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A finished run of two arms, each at its own guidance, whose seeds do not begin with 0."""
    monkeypatch.chdir(tmp_path)
    plain = experiment(arms=["base", "reca"], seeds=[4, 11])
    sizes = {"prompts": 2, "reconstructions": 0, "curve_prompts": 0}
    plain["benchmarks"]["laptop"] |= sizes | {"base_guidance": False}
    made = Tree(plain)
    made.write()
    return made


def equal(cell: before_after.Cell, image: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(cell.image), np.asarray(image)))


def test_cells_are_the_first_images_at_the_guidance_that_is_read(
    tree: Tree, blocks: list[before_after.Block]
) -> None:
    chosen = artifacts.read_json(tree.model / "guidance/guidance.json")["chosen"]["base"]
    asked = prompts("test", 6, tree.benchmark["seed"])
    again, dense, geneval = blocks
    assert (again.outcome, dense.outcome, geneval.outcome) == ("reconstruction", "dense", STRICT)
    assert again.columns == dense.columns == ["target", "base", "sft", "reca"]
    assert geneval.columns == ["base", "sft", "reca"]  # many images are right
    assert [row.words for row in dense.rows] == [p.text for p in asked if p.task == "dense"]
    first = [p for p in asked if p.id.endswith("-0000") and not p.task.startswith("dense")]
    assert [row.words for row in geneval.rows] == [p.text for p in first] and len(first) == 6
    for arm in ("base", "sft", "reca"):
        images = ImageSet(tree.model / f"{arm}-0/laptop/test/samples/images.tar")
        for index, row in enumerate(again.rows):
            assert equal(row.cells[arm], images.image(reconstruction_key(index)))
        for row, prompt in zip(dense.rows, (p for p in asked if p.task == "dense"), strict=True):
            assert equal(row.cells[arm], images.image(sample_key(chosen["dense"], prompt.id)))
        for row, prompt in zip(geneval.rows, first, strict=True):
            assert equal(row.cells[arm], images.image(sample_key(chosen[STRICT], prompt.id)))


def test_each_arm_at_its_own_guidance(own: Tree) -> None:
    chosen = artifacts.read_json(own.model / "guidance/guidance.json")["chosen"]
    test = collect.evaluated(own.model, "laptop", at_base=False)
    dense, geneval = before_after.blocks(test, own.benchmark)
    assert (dense.outcome, geneval.outcome) == ("dense", "geneval")
    assert geneval.columns == ["base", "reca"] and len(dense.rows) == 2 and len(geneval.rows) == 6
    for arm in ("base", "reca"):
        assert geneval.guidance[arm] == chosen[arm]["geneval"]
        images = ImageSet(own.model / f"{arm}-4/laptop/test/samples/images.tar")
        key = sample_key(chosen[arm]["geneval"], "single_object-0000")
        assert equal(geneval.rows[0].cells[arm], images.image(key))


def test_verdicts_are_the_examiners(tree: Tree, blocks: list[before_after.Block]) -> None:
    rows = collect.read_lines(tree.model / "reca-0/laptop/test/scores/items.jsonl")
    again, dense, geneval = blocks
    assert [row.cells["reca"].accepted for row in again.rows] == [
        item["exact"] == 1 for item in rows if item["kind"] == "reconstruction"
    ]
    for block, kind in ((dense, "score"), (geneval, "strict")):
        level = block.guidance["reca"]
        at = {i["id"]: i for i in rows if i["kind"] == "prompt" and i["guidance"] == level}
        asked = {p.text: p.id for p in prompts("test", 6, tree.benchmark["seed"])}
        for row in block.rows:
            assert row.cells["reca"].accepted == (at[asked[row.words]][kind] == 1)


def test_targets_are_accepted_by_the_examiner(blocks: list[before_after.Block]) -> None:
    for row, scene in zip(blocks[0].rows, held_out_scenes("test", 3, 0), strict=True):
        assert equal(row.cells["target"], Image.fromarray(draw_pixels(scene)))
    for prompt in prompts("test", 20, 5):
        scene = before_after.scene_of(prompt)
        assert (scene is not None) == prompt.task.startswith("dense")
        if scene:
            assert score_prompt(prompt, examiner.detect(draw_pixels(scene))) == 1


def test_the_file_shows_the_cells_enlarged(blocks: list[before_after.Block]) -> None:
    """Each cell's pixels are squares; a frame is drawn only where the examiner accepted the image."""
    found = np.asarray(before_after.drawn({"one": blocks[:1]}))
    size, step = before_after.CELL, before_after.CELL + before_after.GAP
    top = before_after.MARGIN + before_after.NAME + before_after.HEAD
    for line, row in enumerate(blocks[0].rows):
        for place, column in enumerate(blocks[0].columns):
            y, x = top + line * before_after.ROW, before_after.MARGIN + place * step
            shown, image = found[y : y + size, x : x + size], np.asarray(row.cells[column].image)
            assert np.array_equal(shown, image.repeat(5, axis=0).repeat(5, axis=1))
            framed = found[y + 1, x - 1].tolist() == [0x12, 0xA1, 0x50]
            assert framed == row.cells[column].accepted


def test_words_stay_in_their_column(blocks: list[before_after.Block]) -> None:
    longest = max((p.text for p in prompts("test", 200, 0) if p.task == "dense"), key=len)
    assert len(before_after.wrapped(longest, 340 - 16)) * before_after.LINE <= before_after.ROW
    assert before_after.wrapped("", 100) == []


def test_make_readme_writes_the_picture_and_shows_it(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run gives the same bytes; a page whose run was adopted without images keeps none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readme, "PAGES", {"laptop": Path("docs/page.md")})
    monkeypatch.setattr(readme, "FIGURES", {})
    marks = [mark.format(n) for n in ("picture", "results") for mark in (readme.BEGIN, readme.END)]
    page = tmp_path / "docs/page.md"
    (tmp_path / "docs/results").mkdir(parents=True)
    page.write_text("\n".join(["# A page", *marks, ""]))
    monkeypatch.setattr(sys, "argv", ["readme", "--take", str(tree.root)])
    readme.main()
    file, adopted = Path("docs/results/laptop_pictures.png"), Path("docs/results/laptop.json")
    first, text = file.read_bytes(), page.read_text()
    about: dict[str, Any] = artifacts.read_json(adopted)["pictures"]
    assert about["sha256"] == artifacts.sha256_bytes(first)
    assert Image.open(io.BytesIO(first)).mode == "RGB" and len(first) < 300_000
    assert "](results/laptop_pictures.png)" in text and "[docs/results/laptop.json](" in text
    assert (
        "the first 3 held-out images, the first 6 dense prompts and the" in text
        and "seed 0, at" in text
    )
    assert "best for the base" in text
    assert re.search(r"dense prompts: Base \d, Plain training \d, RecA \d of 6; GenEval", text)
    (model,) = about["models"]
    assert model["name"] == MODEL and set(model["images"]) == {"base-0", "sft-0", "reca-0"}
    for image in model["images"].values():
        assert artifacts.sha256_file(tree.root / image["file"]) == image["sha256"]
    readme.main()
    assert file.read_bytes() == first and page.read_text() == text
    kept = artifacts.read_json(adopted)
    del kept["pictures"]
    artifacts.write_json(adopted, kept)
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert "pictures.png" not in page.read_text() and f"| **{MODEL}** |" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["readme", "--take", str(tmp_path / "nothing")])
    assert readme.main() == 2
    assert re.fullmatch(r"make readme: .*nothing.*\n", capsys.readouterr().err)


def test_one_band_per_model(blocks: list[before_after.Block]) -> None:
    one = before_after.drawn({"one": blocks})
    two = before_after.drawn({"one": blocks, "two": blocks})
    assert two.width == one.width and two.height > 1.8 * one.height


def test_a_run_with_other_prompts_is_refused(tree: Tree) -> None:
    test = collect.evaluated(tree.model, "laptop", at_base=True)
    with pytest.raises(ValueError, match=r"images\.tar: .* is of the prompt .* run the experiment"):
        before_after.blocks(test, tree.benchmark | {"test_seeds": TEST_SEEDS})


def test_a_run_without_scores_is_refused(tree: Tree, tmp_path: Path) -> None:
    shutil.copytree(tree.model / "guidance", tmp_path / "laptop" / MODEL / "guidance")
    with pytest.raises(ValueError, match="no test scores of a benchmark of kind laptop"):
        before_after.picture(tmp_path / "laptop", [MODEL])
