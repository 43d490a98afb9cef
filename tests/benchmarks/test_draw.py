"""One shard of answers: kept one by one, batches those of an undisturbed run."""

from __future__ import annotations

import pytest

from reca.benchmarks.draw import draw
from reca.generate import Origin
from reca.records import read_json
from reca.schema import BenchmarkConfig, Sampler
from tests.benchmarks import small_benchmarks as small
from tests.toy_model import DrawingToy

ORIGIN = Origin("m" * 64, "mme", 0, "c" * 64)


class Looking(DrawingToy):
    """Says what it sees, so that answers about two pictures differ."""

    def answer(self, questions, features, max_new_tokens=32):
        self.answered += len(questions)
        return [str(row.tolist()) for row in features["target"]]


@pytest.fixture
def answered(tmp_path):
    data = {"questions": small.mme(tmp_path / "data")}

    def run(out, origin=ORIGIN, batch_size=3):
        model = Looking()
        (tmp_path / out).mkdir()
        counts = draw(model, BenchmarkConfig(kind="mme", batch_size=batch_size), Sampler(), origin,
                      data, run="base-0", work=tmp_path / "work", out=tmp_path / out)  # fmt: skip
        assert counts == {"questions": 4}
        return read_json(tmp_path / out / "answers.json"), model.answered

    return run


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
