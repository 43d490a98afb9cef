"""One shard of answers: kept one by one, batches those of an undisturbed run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reca.config.schema import BenchmarkConfig, Sampler
from reca.core.artifacts import read_json
from reca.evaluation.sample import sample
from reca.evaluation.score import score
from reca.inference.generate import Origin
from reca.inference.imageset import ImageSet
from reca.models.bagel.model import BagelModel
from reca.models.harmon.model import HarmonModel
from tests.evaluation import small_benchmarks as small
from tests.toy_model import DrawingToy

ORIGIN = Origin("m" * 64, "mme", 0, "c" * 64)


class Looking(DrawingToy):
    """Says what it sees, so that answers about two pictures differ."""

    def answer(self, questions, features, max_new_tokens=32):
        self.answered += len(questions)
        return [str(row.tolist()) for row in features["target"]]


class LookingAtAll(Looking):
    def answer_about(self, questions, pictures, max_new_tokens=32):
        self.answered += len(questions)
        return [str(rows) for rows in zip(*(f["target"].tolist() for f in pictures), strict=True)]


@pytest.fixture
def answered(tmp_path):
    data = {"questions": small.mme(tmp_path / "data")}

    def run(out, origin=ORIGIN, batch_size=3):
        model = Looking()
        (tmp_path / out).mkdir()
        counts = sample(model, BenchmarkConfig(kind="mme", batch_size=batch_size), Sampler(), origin,
                      data, run="base-0", work=tmp_path / "work", out=tmp_path / out)  # fmt: skip
        assert counts == {"questions": 4}
        return read_json(tmp_path / out / "answers.json"), model.answered

    return run


def test_answers_are_as_long_as_the_authors_let_them_be(tmp_path, monkeypatch):
    asked = []

    def answer(self, questions, features, max_new_tokens=32):
        asked.append(max_new_tokens)
        return ["yes"] * len(questions)

    monkeypatch.setattr(Looking, "answer", answer)
    monkeypatch.setattr(Looking, "longest_answer", 77)
    data = {"questions": small.mme(tmp_path / "data")}
    sample(Looking(), BenchmarkConfig(kind="mme", batch_size=4), Sampler(), ORIGIN, data, run="base-0",
           work=tmp_path / "work", out=tmp_path)  # fmt: skip
    assert set(asked) == {77}
    assert (HarmonModel.longest_answer, BagelModel.longest_answer) == (1024, 500)


def test_answers_torn_off_in_a_batch_are_given_again_with_their_batch(answered, tmp_path):
    first, asked = answered("a")
    assert asked == 4 and len(set(first.values())) == 2
    (kept,) = (tmp_path / "work").rglob("answers.jsonl")
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(lines[0] + lines[1][:9])
    assert answered("b") == (first, 4)  # the pass of three rows, and the one of one
    assert kept.read_bytes() == b"".join(lines)
    kept.write_bytes(b"".join(lines[:3]))
    assert answered("c") == (first, 1)


def test_answers_of_another_model_are_not_used(answered):
    answered("a")
    assert answered("b", Origin("n" * 64, "mme", 0, "c" * 64))[1] == 4
    assert answered("c")[1] == 0


# ---- reconstructions -----------------------------------------------------------------------------
def test_the_schedule_of_processes_spans_all_reconstructions_whatever_the_batch(tmp_path):
    """One generator for all images of the process: they share no noise, and the batch changes nothing."""
    (tmp_path / "data").mkdir()
    for name in "abcd":  # the same image, so that only the noise differs
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"data/{name}.png")
    origin = Origin("m" * 64, "reconstruction", 0, schedule="process")
    found = []
    for size in (4, 2):
        out = tmp_path / f"batch-{size}"
        out.mkdir()
        sample(DrawingToy(), BenchmarkConfig(kind="reconstruction", batch_size=size), Sampler(),
               origin, {"images": tmp_path / "data"}, run="base-0", work=out / "work", out=out)  # fmt: skip
        pictures = ImageSet(out / "images.tar")
        found.append([pictures.png(*entry) for entry in pictures])
    assert found[0] == found[1] and len(set(found[0])) == 4


# ---- questions about several pictures ------------------------------------------------------------
def mmmu_tables(folder, second=2, swapped=False):
    """Three questions: about one picture, about two, about one that the text does not name."""
    folder.mkdir()
    cells = [{"bytes": small.picture(number), "path": None} for number in (1, second)]
    one, two = reversed(cells) if swapped else cells
    texts = ["Which <image 1>?", "Is <image 2> larger than <image 1>?", "What is shown?"]
    rows = [
        {"id": f"validation_Art_{number}", "question": text, "options": "['x', 'y']", "answer": "A",
         "image_1": one, "image_2": two if number == 1 else None}
        for number, text in enumerate(texts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation-0.parquet")
    return {"questions": folder}


@pytest.fixture
def mmmu(tmp_path):
    def run(out, data, model=None, work="work"):
        (tmp_path / out).mkdir()
        model = model or LookingAtAll()
        sample(model, BenchmarkConfig(kind="mmmu", batch_size=2), Sampler(), ORIGIN, data,
             run="base-0", work=tmp_path / work, out=tmp_path / out)  # fmt: skip
        return read_json(tmp_path / out / "answers.json"), model.answered

    return run


def test_a_model_that_reads_several_pictures_is_shown_all_in_order(mmmu, tmp_path):
    data = mmmu_tables(tmp_path / "data")
    others = {
        "second": mmmu_tables(tmp_path / "second", second=3),
        "swapped": mmmu_tables(tmp_path / "swapped", swapped=True),
    }
    first, asked = mmmu("a", data)
    assert asked == 3
    for name, changed in others.items():
        found, _ = mmmu(f"a-{name}", changed, work=f"work-{name}")
        assert found["validation_Art_1"] != first["validation_Art_1"]
        assert (found["validation_Art_0"] == first["validation_Art_0"]) == (name == "second")
    (kept,) = (tmp_path / "work").rglob("answers.jsonl")
    whole = kept.read_bytes()
    kept.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]) + b"torn")
    assert mmmu("b", data) == (first, 3) and kept.read_bytes() == whole
    assert mmmu("c", data) == (first, 0)


def test_another_model_is_shown_the_first_and_the_scores_say_so(mmmu, tmp_path):
    data = mmmu_tables(tmp_path / "data")
    others = mmmu_tables(tmp_path / "others", second=3)
    first, asked = mmmu("a", data, Looking())
    assert (first, asked) == mmmu("b", others, Looking(), work="work-b")
    every, _ = mmmu("all", data)
    alone = {"validation_Art_0", "validation_Art_2"}
    assert {name for name in first if first[name] == every[name]} == alone
    for out, shown in (("a", "first"), ("all", "all")):
        found = score(BenchmarkConfig(kind="mmmu"), data, [tmp_path / out], [], tmp_path / out)
        assert found["pictures_shown"] == shown and found["notes"]["several_pictures"] == 1


def test_answers_kept_of_the_first_picture_are_not_those_of_all(mmmu, tmp_path):
    data = mmmu_tables(tmp_path / "data")
    mmmu("a", data, Looking())
    assert mmmu("b", data)[1] == 2  # the batch of the question about two pictures


def test_shards_that_were_shown_other_pictures_are_no_run(mmmu, tmp_path):
    data = mmmu_tables(tmp_path / "data")
    mmmu("a", data)
    mmmu("b", data, Looking())
    with pytest.raises(ValueError, match="different runs"):
        score(BenchmarkConfig(kind="mmmu"), data, [tmp_path / "a", tmp_path / "b"], [], tmp_path)
