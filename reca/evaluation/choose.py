"""Selection of guidance, per arm and outcome, on development prompts only and before any test image is generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from reca.evaluation.tasks.laptop_prompts import AT_BASE, CURVE, STRICT

CHOSEN_BY = ("dense", "geneval", STRICT, "edit")


def arm_of(run: str) -> str:
    """The arm in a run's name: `reca` for `reca-2`."""
    return run.rsplit("-", 1)[0]


def choose(scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The guidance with the best mean over seeds, per arm and outcome; ties go to the smallest level.

    `scores` are `scores.json` of development runs: `{"run", "split", "by_guidance": {level: {outcome:
    value}}}`. Returns `{"chosen": {arm: {outcome: level}}, "levels": [level], "sweep": {arm: {outcome: {level: [values
    by seed]}}}}`, where `levels` are those of prompts, not of edits. ValueError for a test run.
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
    levels = {
        level for arm in sweep.values() for name in arm for level in arm[name] if name != "edit"
    }
    return {
        "chosen": chosen,
        "levels": sorted(levels),
        "sweep": {arm: _plain(outcomes) for arm, outcomes in sweep.items()},
    }


def requested(
    choice: Mapping[str, Any], arm: str, *, at_base: bool = False, curve: bool = False
) -> dict[str, float]:
    """The guidance levels at which an arm's test prompts are sampled, by name; `choice` as `choose` returns it.

    An outcome's name: the level chosen for the arm. `at_base` adds `<outcome>@base`, the level chosen for the base, and
    a choice by the strict rule; `curve` adds every level as `curve@<level>`.
    """
    chosen = choice["chosen"]
    found = {name: level for name, level in chosen[arm].items() if at_base or name != STRICT}
    if at_base:
        found |= {name + AT_BASE: level for name, level in chosen["base"].items()}
    if curve:
        found |= {f"{CURVE}{level}": level for level in choice["levels"]}
    return found


def _plain(
    outcomes: Mapping[str, Mapping[float, list[float]]],
) -> dict[str, dict[str, list[float]]]:
    return {
        name: {str(level): values for level, values in sorted(levels.items())}
        for name, levels in outcomes.items()
    }
