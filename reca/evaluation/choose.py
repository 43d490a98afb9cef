"""Selection of guidance, per arm and outcome, on development prompts only and before any test image is generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

CHOSEN_BY = ("dense", "geneval", "edit")


def arm_of(run: str) -> str:
    """The arm in a run's name: `reca` for `reca-2`."""
    return run.rsplit("-", 1)[0]


def choose(scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The guidance with the best mean over seeds, per arm and outcome; ties go to the smallest level.

    `scores` are `scores.json` of development runs: `{"run", "split", "by_guidance": {level: {outcome:
    value}}}`. Returns `{"chosen": {arm: {outcome: level}}, "sweep": {arm: {outcome: {level: [values
    by seed]}}}}`. ValueError for a test run.
    """
    sweep: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for score in sorted(scores, key=lambda s: s["run"]):
        if score["split"] != "development":
            raise ValueError(
                f"{score['run']}: guidance is chosen on development prompts, not on split {score['split']!r}; "
                "give development scores"
            )
        for level, values in score["by_guidance"].items():
            for name in (name for name in CHOSEN_BY if name in values):
                sweep[arm_of(score["run"])][name][float(level)].append(values[name])
    chosen = {
        arm: {
            name: min(levels, key=lambda level: (-sum(levels[level]) / len(levels[level]), level))
            for name, levels in outcomes.items()
        }
        for arm, outcomes in sweep.items()
    }
    return {"chosen": chosen, "sweep": {arm: _plain(outcomes) for arm, outcomes in sweep.items()}}


def _plain(
    outcomes: Mapping[str, Mapping[float, list[float]]],
) -> dict[str, dict[str, list[float]]]:
    return {
        name: {str(level): values for level, values in sorted(levels.items())}
        for name, levels in outcomes.items()
    }
