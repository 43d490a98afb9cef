"""Pictures without their black border, as BAGEL's scripts save them: a named option, off by default."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict

import pytest
from PIL import Image

from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import read_json
from reca.evaluation.observe import observe
from reca.evaluation.observers.view import View
from reca.evaluation.pictures import Cropped
from reca.inference.imageset import png
from tests.evaluation import small_benchmarks as small
from tests.evaluation.judges import judge_server as js
from tests.evaluation.test_stages import paired, run


def test_black_borders_are_cropped_only_where_it_is_asked_for(tmp_path, monkeypatch):
    """BAGEL's defect as an option: the judge sees the smaller picture, a picture without border is untouched."""
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", js.KEY)
    sources = {"prompts": small.imgedit(tmp_path / "e"), "images": tmp_path / "e/images"}
    theirs, bordered = tmp_path / "theirs", Image.new("RGB", (40, 30))
    theirs.mkdir()
    bordered.paste((9, 0, 0), (8, 4, 40, 25))
    bordered.save(theirs / "7.png")
    (theirs / "12.png").write_bytes(small.picture(12))
    words = ["imgedit", str(theirs), *paired(sources)]

    def seen(server):
        urls = [body["messages"][0]["content"][2]["image_url"]["url"] for body in server.asked]
        files = [base64.b64decode(url.split(",")[1]) for url in urls]
        return sorted(Image.open(io.BytesIO(file)).size for file in files)

    whole = Image.open(io.BytesIO(small.picture(12))).size
    for crop, size in ((False, (40, 30)), (True, (32, 21))):
        with js.serving(js.says("Prompt Compliance: 4")) as server:
            judge = tmp_path / f"judge-{crop}.json"
            judge.write_text(json.dumps(asdict(js.config(server))))
            options = ["--options", json.dumps({"crop_black": crop})]
            run(
                "score",
                *words,
                *options,
                "--judge",
                f"@{judge}",
                "--out",
                str(tmp_path / str(crop)),
            )
            assert seen(server) == sorted([size, whole])
        notes = read_json(tmp_path / f"{crop}/scores.json")["notes"]
        assert notes.get("crop_black", False) == crop


def test_cropping_is_by_the_picture_and_refused_where_there_is_none(tmp_path):
    border, black = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    border.putpixel((3, 5), (0, 0, 1))
    files = {("border", 0): png(border), ("black", 0): png(black), ("plain", 0): small.picture(1)}
    cropped = Cropped(files)
    assert list(cropped) == list(files) and len(cropped) == 3 and ("x", 0) not in cropped
    assert Image.open(io.BytesIO(cropped["border", 0])).size == (1, 1)
    for name in ("black", "plain"):
        assert cropped[name, 0] == files[name, 0]
    assert cropped.changed == {("border", 0)}
    with pytest.raises(ValueError, match=r"mmvet\.crop_black: there are no generated images"):
        observe(
            View(BenchmarkConfig(kind="mmvet", crop_black=True), [], {}, {}, 1,
                 tmp_path, tmp_path / "out", tmp_path / "l")
        )  # fmt: skip
