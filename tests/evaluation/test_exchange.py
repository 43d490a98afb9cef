"""Questions and images out, answers in: DPG-Bench's scorer in another environment, by the files of one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import sha256_bytes
from reca.core.documents import lines
from reca.evaluation.observers import vqa
from reca.evaluation.observers.exchange import read_answers
from reca.evaluation.observers.view import View
from reca.inference.items import Prompt
from tests.evaluation import small_benchmarks as small

OTHER = "other images; give an empty folder"


@pytest.fixture
def data(tmp_path):
    return {"questions": small.dpg(tmp_path / "data"), "answers": tmp_path / "mplug"}


def observe(data, out, seeds):
    """Observe one image per prompt: `seeds` makes the image of each."""
    pictures = {(name, 0): small.picture(seed) for name, seed in seeds.items()}
    items, places = [Prompt(name, name, "dpg") for name in seeds], (out / "work", out, out / "l")
    out.mkdir(exist_ok=True)
    vqa.observe(
        View(BenchmarkConfig(kind="dpg", scorer="file:mplug"), items, pictures, data, 1, *places)
    )
    return lines(out / "evidence.jsonl")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(folder, also=(), said="yes"):
    """Answer all questions in the folder; only `id`, `sample` and `question` are copied, and the keys `also`."""
    keys = ("id", "sample", "question", *also)
    rows = [{key: row[key] for key in keys} for row in lines(folder / "questions.jsonl")]
    write(folder / "answers.jsonl", [row | {"answer": said} for row in rows])


BASE, RECA = {"one": 1, "two": 2}, {"one": 1, "two": 3}


@pytest.fixture
def base(data, tmp_path):
    """The folder of answers in which the images of the base were answered."""
    with pytest.raises(ValueError, match="are written"):
        observe(data, tmp_path / "base", BASE)
    answer(data["answers"])
    assert [row["answer"] for row in observe(data, tmp_path / "base", BASE)] == ["yes"] * 3
    return data["answers"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_question_and_answer_has_the_hash_of_its_image(base, data, tmp_path):
    hashes = {name: sha256_bytes(small.picture(seed)) for name, seed in BASE.items()}
    for rows in (lines(base / "questions.jsonl"), observe(data, tmp_path / "base", BASE)):
        assert len(rows) == 3 and all(row["sha256"] == hashes[row["id"]] for row in rows)


KEPT = {
    "everything": ([], r"two_0\.jpg: differs from the image of this run, so its answers are about"),
    "no images": (["one_0.jpg", "two_0.jpg"], r"questions\.jsonl: asks \('two', 0, 1\) about another"),
    "only answers": (["one_0.jpg", "two_0.jpg", "questions.jsonl"],
                     r"answers\.jsonl, line 1: neither .* says which image \('one', 0, 1\) is about"),
}  # fmt: skip


@pytest.mark.parametrize("kept", KEPT)
def test_answers_about_the_images_of_another_model_are_refused(base, data, tmp_path, kept):
    removed, message = KEPT[kept]
    for name in removed:
        (base / name).unlink()
    before = files(base)
    with pytest.raises(ValueError, match=f"{message}.*give an empty folder"):
        observe(data, tmp_path / "reca", RECA)
    assert files(base) == before and not (tmp_path / "reca/evidence.jsonl").exists()


def test_answers_that_name_their_images_need_nothing_else(base, data, tmp_path):
    answer(base, also=["sha256"])
    for name in ("one_0.jpg", "two_0.jpg", "questions.jsonl"):
        (base / name).unlink()
    with pytest.raises(ValueError, match=rf"answers\.jsonl, line 3: .*{OTHER}"):
        observe(data, tmp_path / "reca", RECA)
    assert len(observe(data, tmp_path / "base", BASE)) == 3


def test_questions_of_an_older_reca_are_checked_by_the_images_beside_them(base, data, tmp_path):
    rows = [{**row} for row in lines(base / "questions.jsonl")]
    for row in rows:
        del row["sha256"]
    write(base / "questions.jsonl", rows)
    with pytest.raises(ValueError, match=f"differs from the image of this run.*{OTHER}"):
        observe(data, tmp_path / "reca", RECA)
    assert len(observe(data, tmp_path / "base", BASE)) == 3
    assert all("sha256" in row for row in lines(base / "questions.jsonl"))


def test_another_text_of_a_question_is_refused(base, data, tmp_path):
    table = data["questions"] / "dpg_bench.csv"
    table.write_text(table.read_text().replace("is there a cat ?", "is there a cow ?"))
    with pytest.raises(ValueError, match=r"is 'is there a cat .', but 'is there a cow .'"):
        observe(data, tmp_path / "base", BASE)


def test_shards_share_a_folder(data, tmp_path):
    shards = [{"one": 1}, {"two": 2}]
    for number, shard in enumerate(shards):
        with pytest.raises(ValueError, match="are written"):
            observe(data, tmp_path / str(number), shard)
    folder = data["answers"]
    asked = lines(folder / "questions.jsonl")
    assert [(row["id"], row["question"]) for row in asked] == [("one", 1), ("one", 2), ("two", 1)]
    answer(folder)
    mine = (folder / "answers.jsonl").read_bytes()
    found = [observe(data, tmp_path / str(n), shard) for n, shard in enumerate(shards)]
    assert [[row["id"] for row in rows] for rows in found] == [["one", "one"], ["two"]]
    assert (folder / "answers.jsonl").read_bytes() == mine


def test_a_shard_without_questions_asks_for_no_answers(data, tmp_path):
    assert observe(data, tmp_path / "0", {}) == []


def test_a_shard_that_comes_after_the_answers_adds_its_questions(data, tmp_path):
    with pytest.raises(ValueError, match="are written"):
        observe(data, tmp_path / "0", {"one": 1})
    answer(data["answers"])
    with pytest.raises(ValueError, match=r"answers\.jsonl: 1 questions have no answer"):
        observe(data, tmp_path / "1", {"two": 2})
    assert len(lines(data["answers"] / "questions.jsonl")) == 3
    assert (data["answers"] / "two_0.jpg").read_bytes() == small.picture(2)
    answer(data["answers"])
    assert len(observe(data, tmp_path / "1", {"two": 2})) == 1


# ---- answers.jsonl -------------------------------------------------------------------------------
ASKED = {("item", 0, n): {"sha256": "a" * 64} for n in (1, 2)}


def row(question, answer="yes"):
    return {"id": "item", "sample": 0, "question": question, "answer": answer}


def test_answers_of_another_environment(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(2, "no"), row(1), row(1), row(7)])
    found = read_answers(path, ASKED, known=[("item", 0, 7)])
    assert list(found.values()) == [r | {"sha256": "a" * 64} for r in (row(2, "no"), row(1))]


WRONG = {
    "not asked": ([row(1), row(2), row(3)], r"line 3: .* is not in questions\.jsonl"),
    "two answers": ([row(1), row(1, "no")], "line 2: .* has two different answers"),
    "no answer": ([{"id": "item"}], "line 1: not a valid answer"),
    "null": ([row(1, None)], "line 1: not a valid answer"),
}


@pytest.mark.parametrize("how", WRONG)
def test_answers_that_do_not_fit(tmp_path: Path, how):
    rows, message = WRONG[how]
    with pytest.raises(ValueError, match=message):
        read_answers(write(tmp_path / "a.jsonl", rows), ASKED)
