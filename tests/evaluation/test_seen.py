"""Rows of an interrupted observation are used again only for what they were made from."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from PIL import Image

from reca.cli import main
from reca.commands.code import stage_code
from reca.config.schema import BenchmarkConfig
from reca.core.documents import lines
from reca.core.images import decode, original_of
from reca.evaluation.observers import detector, similarity, vqa
from reca.evaluation.observers.view import View
from reca.inference.imageset import png
from reca.inference.items import Prompt
from tests.evaluation import small_benchmarks as small

A, B = "a" * 64, "b" * 64  # fingerprints of code
FACTS = {"include": [{"class": "cat", "count": 1, "color": "red"}]}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folders of every role, and networks that only say which folder they are of."""
    found = {
        "prompts": small.geneval(tmp_path / "geneval"),
        "questions": small.dpg(tmp_path / "dpg"),
    }
    for role in ("detector", "clip", "vqa"):
        found[role] = tmp_path / role
        found[role].mkdir()
        (found[role] / "model.safetensors").write_text(role)
    monkeypatch.setattr(detector, "Mask2Former", SimpleNamespace(open=lambda *_: None))
    monkeypatch.setattr(detector, "ClipColours", lambda folder, device: read(folder))
    monkeypatch.setattr(
        detector, "GenevalEye", lambda eye, clip, names: lambda i, facts: [clip, facts]
    )
    monkeypatch.setattr(vqa, "BlipVqa", lambda folder, device: lambda image, texts: texts)
    return found


def read(folder):
    return (folder / "model.safetensors").read_text()


def observed(module, data, tmp_path, *, kind="geneval", facts=FACTS, code=A, **more):
    """The rows that an observer writes about one image; the work folder is always the same."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    items, pictures = [Prompt("one", "a cat", kind, facts)], {("one", 0): small.picture(1)}
    view = View(BenchmarkConfig(kind=kind), items, pictures, data, 1, tmp_path / "work", out,
                tmp_path / "l", code=code, **more)  # fmt: skip
    module.observe(view)
    return lines(out / "evidence.jsonl")


def test_other_weights_of_clip_see_other_colours(data, tmp_path):
    weights = data["clip"] / "model.safetensors"
    before = weights.stat().st_mtime
    assert observed(detector, data, tmp_path)[0]["detections"] == ["clip", FACTS]
    weights.write_text("pilc")  # as many bytes
    os.utime(weights, (before + 1, before + 1))
    assert observed(detector, data, tmp_path)[0]["detections"] == ["pilc", FACTS]


def test_other_facts_of_a_prompt_are_examined(data, tmp_path):
    other = {"include": [{"class": "cat", "count": 1, "color": "blue"}]}
    for facts in (FACTS, other):
        assert observed(detector, data, tmp_path, facts=facts)[0]["detections"][1] == facts


def test_a_question_with_another_text_is_answered_again(data, tmp_path):
    table = data["questions"] / "dpg_bench.csv"
    assert observed(vqa, data, tmp_path, kind="dpg")[0]["answer"] == "is there a cat ?"
    table.write_text(table.read_text().replace("is there a cat ?", "is there a cow ?"))
    assert observed(vqa, data, tmp_path, kind="dpg")[0]["answer"] == "is there a cow ?"


def test_another_original_is_compared_again(tmp_path):
    rows = [
        observed(similarity, {}, tmp_path, kind="reconstruction", sources={"one": small.picture(n)})
        for n in (1, 2)
    ]
    assert rows[0] != rows[1] and rows[0][0]["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("width", [16, 24])
def test_a_reconstruction_is_compared_with_the_central_square(tmp_path, width):
    """What the picture shows is the middle of its original, whatever lies left and right of it."""
    square = decode(small.picture(1), name="one")
    side = square.height
    whole = Image.new("RGB", (width * side // 16, side), "white")
    whole.paste(square, ((whole.width - side) // 2, 0))
    sources = {"one": png(whole)}
    assert original_of(sources["one"], name="one").tobytes() == square.tobytes()
    (row,) = observed(similarity, {}, tmp_path, kind="reconstruction", sources=sources)
    assert row["ssim"] == pytest.approx(1) and row["psnr"] == 100


def test_rows_of_other_code_are_not_mixed_with_those_of_this_code(data, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(detector, "GenevalEye", lambda *_: lambda *_: counted.append(1) or [])
    for code in (A, A, B, B, A):
        observed(detector, data, tmp_path, code=code)
    assert len(counted) == 2


def test_scoring_a_folder_says_which_code_observes(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("reca.evaluation.observe.observe", lambda view: seen.append(view.code))
    (tmp_path / "theirs/00000/samples").mkdir(parents=True)
    (tmp_path / "theirs/00000/samples/0000.png").write_bytes(small.picture(1))
    main(["score", "geneval", str(tmp_path / "theirs"), "--source", f"prompts={data['prompts']}",
          "--partial", "--out", str(tmp_path / "scores")])  # fmt: skip
    assert seen == [stage_code("observe", benchmark="geneval")]


def test_a_folder_is_not_scored_by_what_was_seen_in_another(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detector, "GenevalEye", lambda *_: lambda *_: [])
    bordered = Image.new("RGB", (40, 30))
    bordered.paste((9, 0, 0), (8, 4, 40, 25))
    theirs = tmp_path / "theirs/00000/samples/0000.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(png(bordered))
    sources = [word for role in ("prompts", "detector", "clip")
               for word in ("--source", f"{role}={data[role]}")]  # fmt: skip

    def score(out, *words, crop=False):
        options = ("--options", f'{{"crop_black": {json.dumps(crop)}}}', "--partial")
        out = ("--out", str(tmp_path / out))
        return main(
            ["score", "geneval", str(tmp_path / "theirs"), *sources, *options, *out, *words]
        )

    assert score("whole") == score("cropped", crop=True) == 0
    seen = {
        name: ("--evidence", str(tmp_path / name / "evidence")) for name in ("whole", "cropped")
    }
    assert score("a", *seen["whole"]) == score("b", *seen["cropped"], crop=True) == 0
    theirs.write_bytes(small.picture(2))
    capsys.readouterr()
    for name, crop in (("whole", False), ("cropped", True)):
        assert score("c", *seen[name], crop=crop) == 2
        error = capsys.readouterr().err
        assert "line 1: about another image of '00000'" in error and error.count("\n") == 1
    assert score("c", *seen["whole"], *seen["cropped"][1:]) == 2
    assert "one folder of evidence; give one" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
