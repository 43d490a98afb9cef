"""Sentences against the numbers they stand for."""

from __future__ import annotations

import pytest

from reca.report import statistics, wording


@pytest.mark.parametrize(
    ("reca", "sft", "expected"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.61], "better"),
        ([0.4, 0.5, 0.61], [0.5, 0.6, 0.7], "worse"),
        ([0.5, 0.6, 0.4], [0.4, 0.7, 0.4], "unclear"),
        ([0.5], [0.1], "single"),
    ],
)
def test_verdict(reca: list[float], sft: list[float], expected: str) -> None:
    gap = statistics.difference(reca, sft)
    assert wording.verdict(gap) == expected


def test_headline_says_what_is_not_shown() -> None:
    row = {"name": "dense", "primary": True}
    unclear = row | {"differences": {"reca - sft": statistics.difference([0.5, 0.4], [0.4, 0.5])}}
    better = {"name": "geneval", "primary": True} | {
        "differences": {"reca - sft": statistics.difference([0.5, 0.61], [0.4, 0.5])}
    }
    told = wording.headline([{"name": "m", "outcomes": [unclear, better]}])
    assert (
        told == "On dense prompts, there is no significant difference; on GenEval's six tasks, yes."
    )


def test_what_arms_that_are_not_trained_have_in_difference_is_not_shown() -> None:
    row = {"name": "dense", "title": "Dense", "primary": True} | {
        arm: statistics.summary(values)
        for arm, values in {"reca": [0.5, 0.61], "sft": [0.4, 0.5]}.items()
    }
    row["differences"] = {"reca - sft": statistics.difference([0.5, 0.61], [0.4, 0.5])}
    flat, falls = (
        {"trained": is_flat, "flat": is_flat, "fall": fall, "reconstructs": None}
        for is_flat, fall in ((True, 0.0), (False, 0.2))
    )
    model = {"name": "m", "outcomes": [row], "chance": {}}
    known = {"trained": {"reca": flat, "sft": flat}}
    assert wording.headline([model | known]) == "On dense prompts, yes."
    assert "excludes 0: RecA is better." in wording.findings(model | known)[0]
    known = {"trained": {"reca": flat, "sft": falls}}
    told = "On dense prompts, RecA is ahead, but plain training is not trained."
    assert wording.headline([model | known]) == told
    assert (
        "excludes 0: RecA is ahead, but plain training is not trained."
        in (wording.findings(model | known)[0])
    )


def test_unequal_compute_is_told() -> None:
    equal = {"steps": 3, "samples": 30, "tokens": 5.0}
    assert "Every arm was trained for 3 optimizer steps" in wording.compute(
        {"reca": equal, "sft": equal}
    )
    assert "not at equal compute" in wording.compute(
        {"reca": equal, "sft": equal | {"samples": 29}}
    )


def test_numbers_in_words() -> None:
    assert wording.counted(1, "seed") == "one seed"
    assert wording.counted(1200, "seed") == "1,200 seeds"
    assert [wording.inside(name) for name in ("Plain training", "RecA only")] == [
        "plain training",
        "RecA only",
    ]
    assert wording.signed(-0.25) == "\N{MINUS SIGN}0.250"
