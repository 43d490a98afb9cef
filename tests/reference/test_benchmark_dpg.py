"""DPG-Bench's scores against the official script's, as it is and repaired."""

from __future__ import annotations

from statistics import fmean

import pytest

from reca.evaluation.tasks import dpg
from reca.inference.items import Prompt
from tests.reference.benchmark_cases import only

SETS = only("dpg", "sets")["sets"]
TIGHT = 1e-9


def answers_of(golden):
    """Answers by item and picture, by proposition; the question's text names the proposition."""
    ids = {
        (row["item_id"], row["question_natural_language"]): row["proposition_id"]
        for row in golden["rows"]
    }
    found = {}
    for row in golden["answers"]:
        pictures = found.setdefault(row["item"], [{} for _ in range(golden["images_per_prompt"])])
        pictures[row["image"]][ids[row["item"], row["question"]]] = row["answer"]
    return found


@pytest.mark.parametrize("index", range(len(SETS)))
@pytest.mark.parametrize("official", [True, False])
def test_a_set(index, official):
    golden = SETS[index]
    rows, answers = golden["rows"], answers_of(golden)
    # A sacrificial first row stands for an item without answers: only the official reader drops it.
    rows = rows if official else [row for row in rows if row["item_id"] in answers]
    expected = golden["expected_official" if official else "expected_repaired"]
    found = dpg.summary(rows, answers, first_row_bug=official)
    assert found["failed"] == expected.get("failed_items", [])
    assert set(found["per_item"]) == set(expected["per_item"])
    for name, scores in found["per_item"].items():
        told = expected["per_item"][name]
        assert scores == pytest.approx(told["per_image"], abs=TIGHT)
        assert fmean(scores) == pytest.approx(told["mean"], abs=TIGHT)
    assert found["l1"] == pytest.approx(expected["l1"], abs=TIGHT)
    assert found["l2"] == pytest.approx(expected["l2"], abs=TIGHT)
    assert found["overall"] == pytest.approx(expected["overall"], abs=TIGHT)


def test_a_run_without_the_tables_first_item_loses_none_of_its_questions():
    """The official reader drops the first row of the table, whichever prompts were drawn."""
    rows = [
        {"item_id": name, "proposition_id": number, "dependency": "0", "category_broad": "entity",
         "category_detailed": "whole", "tuple": "", "question_natural_language": ""}
        for name in ("one", "two") for number in (1, 2)
    ]  # fmt: skip
    said = [
        {"id": "two", "sample": 0, "question": number, "answer": answer}
        for number, answer in ((1, "no"), (2, "yes"))
    ]
    for names, partial in ((["two"], False), (["one", "two"], True)):
        items = [Prompt(name, "", "dpg") for name in names]
        found = dpg.grade(items, rows, said, samples=1, first_row_bug=True, partial=partial)
        assert found.summary["overall"] == found.summary["overall_repaired"] == 50.0
        assert not found.notes["failed_with_first_row_bug"]


@pytest.mark.parametrize("index", range(len(SETS)))
def test_raw_answers_of_the_last_picture(index):
    golden = SETS[index]
    answers = answers_of(golden)
    items = dpg.by_item(golden["rows"], first_row_bug=True)
    for name, expected in golden["expected_official"]["raw_answers_last_image"].items():
        raw = dpg.raw_scores(items[name], answers[name][-1])
        assert {str(key): value for key, value in raw.items()} == expected
