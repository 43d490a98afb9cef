"""Guidance is chosen on development prompts, per arm and outcome."""

from __future__ import annotations

import pytest

from reca.benchmarks.choose import choose


def score(run: str, split: str = "development", **levels: tuple[float, float]) -> dict:
    guidance = {level.lstrip("g"): {"dense": d, "geneval": g} for level, (d, g) in levels.items()}
    return {"run": run, "split": split, "guidance": guidance}


def test_best_mean_over_seeds_per_arm_and_outcome() -> None:
    chosen = choose(
        [
            score("reca-0", g0=(0.5, 0.1), g2=(0.4, 0.6)),
            score("reca-1", g0=(0.5, 0.9), g2=(0.55, 0.6)),
            score("sft-0", g0=(0.1, 0.2), g2=(0.3, 0.2)),
        ]
    )
    assert chosen["chosen"] == {
        "reca": {"dense": 0.0, "geneval": 2.0},
        "sft": {"dense": 2.0, "geneval": 0.0},
    }
    assert chosen["sweep"]["reca"]["dense"] == {"0.0": [0.5, 0.5], "2.0": [0.4, 0.55]}


def test_test_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="reca-0: guidance is chosen on development prompts"):
        choose([score("reca-0", split="test", g0=(1, 1))])
