"""An arm whose loss still falls, or RecA that does not reconstruct, is called not trained."""

from __future__ import annotations

import pytest

from reca.report import readme, statistics, trained, wording


def lines(*losses: float, task: str = "reca") -> list[dict]:
    return [{"step": n, "loss": {task: loss, "i2t": 9.0 - n}} for n, loss in enumerate(losses)]


def outcome(reca: list[float], base: list[float]) -> dict:
    return {
        "name": "reconstruction",
        "differences": {"reca - base": statistics.difference(reca, base)},
    }


FLAT, FALLING = [3.0, 2.0, 1.5, 1.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]


def test_fall_of_the_last_part() -> None:
    assert trained.fall(lines(*FLAT)) == 0
    assert trained.fall(lines(*FALLING)) == 1.0
    assert trained.fall(lines(1.0, 1.0)) is None  # too few steps to say
    assert trained.fall(lines(*FLAT, task="t2i")) == 0
    skipped = lines(*FLAT) + [{"step": 5, "loss": {"reca": None}}]
    assert trained.fall(skipped) == 0


@pytest.mark.parametrize(
    ("losses", "reca", "expected", "why"),
    [
        (FLAT, [0.3, 0.4, 0.35], True, ""),
        (FALLING, [0.3, 0.4, 0.35], False, "its loss still fell by 100.0% at the end"),
        (FLAT, [0.1, 0.12, 0.1], False, "it does not reconstruct clearly more than the base"),
    ],
)
def test_reca_needs_a_flat_loss_and_reconstruction(losses, reca, expected, why) -> None:
    logs = {f"reca-{seed}": lines(*losses) for seed in range(3)}
    found = trained.trained_arms(logs, [outcome(reca, [0.1, 0.1, 0.12])])["reca"]
    assert found["trained"] is expected and trained.why_not(found) == why


def test_controls_need_not_reconstruct() -> None:
    logs = {"sft-0": lines(*FLAT, task="t2i"), "shuffled-0": lines(*FLAT)}
    found = trained.trained_arms(logs, [outcome([0.1], [0.1])])
    assert all(row["trained"] and row["reconstructs"] is None for row in found.values())


def test_one_seed_is_judged_by_its_items() -> None:
    row = outcome([0.3], [0.1])
    assert trained.reconstructs("reca", [row]) is None
    row["differences"]["reca - base"]["over_items"] = {"mean": 0.2, "ci95": [0.1, 0.3]}
    assert trained.reconstructs("reca", [row]) is True
    assert trained.reconstructs("reca", []) is None


def test_not_trained_is_not_no_difference() -> None:
    unclear = statistics.difference([0.5, 0.4], [0.4, 0.5])
    row = {"name": "dense", "primary": True, "differences": {"reca - sft": unclear}}
    known = trained.trained_arms({"reca-0": lines(*FALLING), "sft-0": lines(*FLAT)}, [])
    told = wording.headline([{"name": "m", "outcomes": [row], "trained": known}])
    assert told == "On dense prompts, RecA is not trained."
    better = row | {"differences": {"reca - sft": statistics.difference([0.5, 0.61], [0.4, 0.5])}}
    told = wording.headline([{"name": "m", "outcomes": [better], "trained": known}])
    assert told == "On dense prompts, RecA is ahead, but not trained."
    assert wording.untrained(known) == [
        "RecA is not trained: its loss still fell by 100.0% at the end; its results say nothing about its objective."
    ]
    assert readme._untrained({"trained": known})[1:] == wording.untrained(known)
    assert readme._untrained({}) == []
