"""Guidance is chosen on development prompts, per arm and outcome."""

from __future__ import annotations

import pytest

from reca.commands.score import development
from reca.evaluation.choose import choose, requested
from reca.evaluation.score import read_samples


def score(run: str, split: str = "development", **levels: tuple[float, float]) -> dict:
    guidance = {level.lstrip("g"): {"dense": d, "geneval": g} for level, (d, g) in levels.items()}
    return {"run": run, "split": split, "by_guidance": guidance}


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


def test_levels_by_name_for_test_prompts() -> None:
    rows = [
        {"run": f"{arm}-0", "split": "development", "by_guidance": {
            level: {"dense": d, "geneval": g, "geneval_strict": s} for level, (d, g, s) in levels.items()
        }}
        for arm, levels in {
            "base": {"0.0": (0.1, 0.2, 0.3), "2.0": (0.3, 0.2, 0.1)},
            "reca": {"0.0": (0.4, 0.1, 0.0), "2.0": (0.3, 0.2, 0.1)},
        }.items()
    ]  # fmt: skip
    choice = choose(rows)
    assert choice["levels"] == [0.0, 2.0]
    assert requested(choice, "reca") == {"dense": 0.0, "geneval": 2.0}  # as ever
    both = requested(choice, "reca", at_base=True)
    assert both == {
        "dense": 0.0, "geneval": 2.0, "geneval_strict": 2.0,
        "dense@base": 2.0, "geneval@base": 0.0, "geneval_strict@base": 0.0,
    }  # fmt: skip
    curve = requested(choice, "base", curve=True)
    assert curve == {"dense": 2.0, "geneval": 0.0, "curve@0.0": 0.0, "curve@2.0": 2.0}


def test_test_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="reca-0: guidance is chosen on development prompts"):
        choose([score("reca-0", split="test", g0=(1, 1))])


@pytest.mark.parametrize("text", ["null", "[]", '{"run": 1}', '{"run": "reca-0", "split": []}'])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("samples.json", read_samples),
        ("scores.json", lambda folder: development(folder / "scores.json")),
    ],
)
def test_records_of_another_form_are_named(tmp_path, name, read, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read(tmp_path)
