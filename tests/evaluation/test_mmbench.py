"""MMBench: each question once, and in all rotations of its options."""

from __future__ import annotations

import pytest

from reca.config.schema import BenchmarkConfig
from reca.evaluation.benchmark_data import questions_of
from reca.evaluation.tasks import mmbench
from reca.inference.items import Question
from tests.evaluation.test_data import HUB, table


def question(name, answer, count=4):
    options = dict(zip("ABCD"[:count], ("oak", "elm", "fir", "yew"), strict=False))
    facts = {"options": options, "stem": f"{name}?", "of": name}
    return Question(name, name, mmbench._text(f"{name}?", options), answer, "kind", facts)


ASKED = mmbench.rotated([question("1", "B"), question("2", "A", 2), question("3", "D")])
TRUE = {q.id: q.answer for q in ASKED}


def test_rotations_move_the_answer_with_its_option():
    first = ASKED[:4]
    assert [q.id for q in first] == ["1", "1~1", "1~2", "1~3"] and len(ASKED) == 4 + 2 + 4
    assert all(q.facts["options"][q.answer] == "elm" and q.image_id == "1" for q in first)
    assert [q.answer for q in first] == ["B", "A", "D", "C"]
    assert first[1].text == "1?\nA. elm\nB. fir\nC. yew\nD. oak" + mmbench.SUFFIX


def test_a_question_counts_only_if_it_is_right_in_all_rotations():
    answers = {**TRUE, "3~2": "A" if TRUE["3~2"] != "A" else "B"}
    found = mmbench.grade(ASKED, answers)
    assert found.summary["vanilla"] == found.summary["overall"] == 100
    assert found.summary["circular"] == pytest.approx(200 / 3)
    found = mmbench.grade(ASKED, answers, circular=True)
    assert found.summary["overall"] == found.summary["circular"] == pytest.approx(200 / 3)
    assert {row["id"]: row["score"] for row in found.items} == {"1": 1, "2": 1, "3": 0}
    assert found.coverage.expected == 10 and found.intervals["overall"][0] <= 200 / 3


def test_one_that_always_says_the_same_letter_has_nothing_circular():
    found = mmbench.grade(ASKED, dict.fromkeys(TRUE, "B"), circular=True)
    assert found.summary["circular"] == 0 and found.summary["vanilla"] == pytest.approx(100 / 3)


def test_rotations_that_lack_count_for_nothing_and_circular_needs_them():
    found = mmbench.grade(ASKED, {n: a for n, a in TRUE.items() if n != "2~1"}, partial=True)
    assert found.coverage.missing == 1 and found.summary["circular"] == 100
    assert (
        len(mmbench._circular(mmbench._groups(ASKED), dict.fromkeys(set(TRUE) - {"2~1"}, True)))
        == 2
    )
    plain = [question("1", "B")]
    assert "circular" not in mmbench.grade(plain, {"1": "B"}).summary
    with pytest.raises(ValueError, match=r"set benchmarks\.mmbench\.rotations"):
        mmbench.grade(plain, {"1": "B"}, circular=True)


def test_the_configuration_asks_for_rotations(tmp_path):
    data = {"questions": table(tmp_path / "dev-0.parquet", [HUB["mmbench"][0]])}
    for rotations, ids in ((False, ["7"]), (True, ["7", "7~1"])):
        asked = questions_of(BenchmarkConfig(kind="mmbench", rotations=rotations), data)
        assert [q.id for q in asked] == ids
    with pytest.raises(ValueError, match=r"pope\.rotations: only MMBench"):
        data = {"questions": table(tmp_path / "pope/test-0.parquet", [HUB["pope"][0]])}
        questions_of(BenchmarkConfig(kind="pope", rotations=True), data)
