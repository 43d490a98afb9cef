"""DPG-Bench's scores against the official script's, as it is and repaired."""

from __future__ import annotations

from statistics import fmean

import pytest

from reca.evaluation.tasks import dpg
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


@pytest.mark.parametrize("index", range(len(SETS)))
def test_raw_answers_of_the_last_picture(index):
    golden = SETS[index]
    answers = answers_of(golden)
    items = dpg.by_item(golden["rows"], first_row_bug=True)
    for name, expected in golden["expected_official"]["raw_answers_last_image"].items():
        raw = dpg.raw_scores(items[name], answers[name][-1])
        assert {str(key): value for key, value in raw.items()} == expected
