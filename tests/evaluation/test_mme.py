"""MME: its sums, each with an interval of its own, and which of them the paper's number is held against."""

from __future__ import annotations

import pytest

from reca.config import compose
from reca.evaluation.tasks import mme
from reca.inference.items import Question
from reca.report import paper
from reca.report.paper_map import COLUMNS, reported_rows

TASKS = ("existence", "OCR", "code_reasoning")


def graded(**options):
    """Ten pictures a task with two questions each; every third picture has a wrong answer."""
    asked, answers = [], {}
    for task in TASKS:
        for picture in range(10):
            for number, truth in enumerate(("Yes", "No")):
                name = f"{task}/{picture}#{number}"
                asked.append(Question(name, f"{task}/{picture}", "q", truth, task))
                is_wrong = number == 1 and picture % 3 == 0
                answers[name] = "yes" if is_wrong else truth.lower()
    return mme.grade(asked, answers, **options)


def test_each_sum_has_an_interval_of_its_own():
    found = graded()
    each = 100 * (16 / 20) + 100 * (6 / 10)
    assert found.summary["perception"] == pytest.approx(2 * each)
    assert found.summary["cognition"] == pytest.approx(each)
    for name in ("perception", "cognition", "total"):
        low, high = found.intervals[name]
        assert low < found.summary[name] < high
    assert found.intervals["perception"][1] < found.intervals["total"][1]


@pytest.mark.parametrize("name", ["total", "perception", "cognition"])
def test_overall_is_the_chosen_sum(name):
    found = graded(overall=name)
    assert found.summary["overall"] == found.summary[name]
    assert found.intervals["overall"] == found.intervals[name]


@pytest.mark.parametrize("experiment", ["paper", "paper_harmon_15b"])
def test_the_papers_number_is_held_against_perception(experiment):
    """reference/benchmarks.md 8: it is given without a name, and is of the size of perception alone."""
    table = paper.reported()["understanding_partial"]
    reported = {a: v["MME"] for _, a, v in reported_rows("understanding_partial", table)}
    told = [one for one in compose.load(experiment).expect if one.metric.startswith("mme.")]
    assert {one.arm: one.value for one in told} == reported
    assert {one.metric for one in told} == {"mme.perception"}
    metric = COLUMNS["understanding_partial"]["MME"]
    assert (metric.benchmark, metric.name) == ("mme", "perception")
