"""Finished pictures and rows of a run that was killed with SIGKILL in the middle of a batch, family by family."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from reca.core.artifacts import sha256_file
from reca.inference import resume
from reca.inference.generate import Origin, generate
from reca.inference.imageset import Entry, ImageSet, ImageSetWriter
from reca.inference.items import Prompt
from reca.inference.resume import ResumableImages, ResumableRows
from reca.models.contract import Sampling
from reca.models.registry import load_model
from tests.align import runs
from tests.inference.test_generate import pixels
from tests.toy_model import DrawingToy

ROOT = Path(__file__).parents[2]
FAMILIES = ("showo", "harmon", "bagel", "openuni")
TEXTS = ["a circle", "a red circle", "a red circle and a blue square", "a circle and a square"]
PROMPTS = [Prompt(f"{i:05d}", text, "task") for i, text in enumerate(TEXTS)]
SAMPLING = Sampling(guidance=3.0, steps=3)


def draw(model, path, schedule="per_image", **options):
    origin = Origin("m" * 64, "geneval", 3, "c" * 64, schedule)
    with ImageSetWriter(path) as writer:
        return generate(model, PROMPTS, writer, origin, SAMPLING, images_per_prompt=2,
                        batch_size=5, **options)  # fmt: skip


def draw_until_killed(family, out, work, schedule):
    """In a process of its own, which ends when two of five pictures are written; the second has no sidecar yet."""
    written, real = [], resume.write_atomic

    def write(path, data, **options):
        written.append(path)
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, data, **options)

    resume.write_atomic = write
    draw(load_model(ROOT / f"weights/{family}_tiny"), out, schedule, work=work)


@pytest.mark.parametrize(
    ("family", "schedule"),
    [*((family, "per_image") for family in FAMILIES), ("bagel", "prompt_reset")],
)
def test_a_kill_inside_a_batch_changes_no_byte_and_repeats_no_picture(
    tmp_path, family, schedule, caplog
):
    out, work = tmp_path / "s.tar", tmp_path / "w"
    child = runs.start(draw_until_killed, family, out, work, schedule)
    child.join(200)
    assert child.exitcode == -signal.SIGKILL and not out.exists()
    (finished,) = [path.with_suffix(".png") for path in work.rglob("*.json")]
    assert len(list(work.rglob("[0-9]*.png"))) == 2
    stamp = finished.stat().st_mtime_ns
    model = load_model(ROOT / f"weights/{family}_tiny")
    caplog.set_level(logging.WARNING)
    assert draw(model, out, schedule, work=work) == 7
    assert finished.stat().st_mtime_ns == stamp
    assert not caplog.records  # what the pass made again of the finished picture was the same
    draw(model, tmp_path / "uninterrupted.tar", schedule)
    assert sha256_file(out) == sha256_file(tmp_path / "uninterrupted.tar")


def test_a_finished_picture_that_would_come_out_otherwise_stays_and_is_told(tmp_path, caplog):
    draw(DrawingToy(), tmp_path / "a.tar", work=tmp_path / "w")
    kept = ResumableImages(next((tmp_path / "w").iterdir()))
    recipe = ImageSet(tmp_path / "a.tar").recipe("00000", 0)
    kept.put(Entry("00000", 0), Image.new("RGB", (8, 8)), recipe)
    (kept.folder / "00000/0001.json").unlink()
    assert draw(DrawingToy(), tmp_path / "b.tar", work=tmp_path / "w") == 1
    assert "1 finished images would differ now" in caplog.text
    first, second = (pixels(ImageSet(tmp_path / f"{name}.tar")) for name in "ab")
    assert [entry for entry in first if first[entry] != second[entry]] == [("00000", 0)]


@pytest.mark.parametrize("harm", ["cut", "gone", "no sidecar", "half a sidecar", "other recipe"])
def test_only_complete_images_of_the_recipe_count(tmp_path, harm):
    kept, entry = ResumableImages(tmp_path), Entry("p/q", 3)
    kept.put(entry, Image.new("RGB", (8, 8), "red"), {"seed": 1}, state=b"state")
    assert kept.has(entry, {"seed": 1}) and kept.state(entry) == b"state"
    picture, sidecar = tmp_path / "p/q/0003.png", tmp_path / "p/q/0003.json"
    if harm == "cut":
        picture.write_bytes(picture.read_bytes()[:-1])
    elif harm == "gone":
        picture.unlink()
    elif harm == "no sidecar":
        sidecar.unlink()
    elif harm == "half a sidecar":
        sidecar.write_text(sidecar.read_text()[:20])
    assert not kept.has(entry, {"seed": 2 if harm == "other recipe" else 1})


def test_rows_survive_a_torn_end_and_foreign_rows_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    ResumableRows(path).add({"a": [{"answer": "yes"}], "b": []})
    with open(path, "ab") as file:
        file.write(b'{"key": "c", "ro')
    rows = ResumableRows(path)
    assert rows.rows == {"a": [{"answer": "yes"}], "b": []}
    assert rows.of("c", lambda: [{"answer": "no"}]) == [{"answer": "no"}]
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    for foreign in ('{"key": 3}\n', "a note without a line end"):
        path.write_text(foreign)
        with pytest.raises(
            ValueError, match=r"rows\.jsonl: not written by reca .* remove the file"
        ):
            ResumableRows(path)
        assert path.read_text() == foreign
