"""SIGKILL of drawing, answering and cache building at each file operation: nothing finished is made again."""

from __future__ import annotations

import os
import pathlib

from reca.core.artifacts import sha256_file
from reca.core.images import decode
from reca.inference.generate import answers
from reca.inference.items import Question
from reca.inference.resume import ResumableRows
from tests.features.test_build import hashes, make
from tests.file_operations import CUT, kill_points
from tests.inference.test_generate import draw
from tests.toy_model import DrawingToy, Pictures, png

WRITES = [(os, "replace"), (os, "fsync"), (os, "link"), (pathlib.Path, "mkdir")]


def test_killed_drawing_goes_on(tmp_path, campaign):
    def work(name):
        draw(tmp_path / name / "s.tar", work=tmp_path / name / "w", batch_size=2)

    draw(tmp_path / "undisturbed.tar")
    for name, code in kill_points(WRITES, work, every=1 if campaign.full else 4):
        if code == 0:
            continue
        with campaign.case(name):
            assert code == CUT
            finished = len(list((tmp_path / name / "w").rglob("0*.json")))
            _, drawn = draw(tmp_path / name / "s.tar", work=tmp_path / name / "w", batch_size=2)
            assert drawn == 6 - finished
            assert sha256_file(tmp_path / name / "s.tar") == sha256_file(
                tmp_path / "undisturbed.tar"
            )
    assert campaign.tried > (40 if campaign.full else 10)


def test_killed_answering_goes_on(tmp_path, campaign):
    """The file of kept answers, cut at every byte: whole rows count, the torn one is asked again."""
    images = {f"i{i}": decode(png(i), name=str(i)) for i in range(3)}
    questions = [Question(f"q{i}", f"i{i % 3}", f"what {i}", "", "kind") for i in range(4)]

    def answer(path, model):
        kept = ResumableRows(path)
        for question in questions:
            kept.of(question.id, lambda q=question: [answers(model, [q], images)])
        return kept.rows

    path = tmp_path / "rows.jsonl"
    undisturbed = answer(path, DrawingToy())
    whole = path.read_bytes()
    for cut in range(len(whole)) if campaign.full else range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        model = DrawingToy()
        with campaign.case(f"{cut} bytes"):
            assert answer(path, model) == undisturbed
            assert model.answered == 4 - whole[:cut].count(b"\n")
            assert path.read_bytes() == whole


def test_killed_cache_building_goes_on(tmp_path, campaign):
    dataset = Pictures(6)

    def work(name):
        make(tmp_path / name / "c", dataset=dataset, work=tmp_path / name / "w")

    make(tmp_path / "undisturbed", dataset=dataset)
    for name, code in kill_points(WRITES, work, every=1 if campaign.full else 4):
        if code == 0:
            continue
        with campaign.case(name):
            assert code == CUT
            finished = len(list((tmp_path / name / "w").glob("*.json")))
            model = DrawingToy()
            cache = make(tmp_path / name / "c", model, dataset, work=tmp_path / name / "w")
            assert len(cache) == 6 and hashes(tmp_path / name / "c") == hashes(
                tmp_path / "undisturbed"
            )
            assert model.encoded <= 1 + 6 - 4 * (
                finished > 0
            )  # a row's size is learnt from one picture
            assert not (tmp_path / name / "w").exists()
    assert campaign.tried > (40 if campaign.full else 10)
