"""Outcomes of a model from its test scores: mean, interval and values by seed for each arm, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reca.evaluation.choose import arm_of
from reca.evaluation.tasks.laptop_prompts import GENEVAL_TASKS
from reca.report import statistics
from reca.toyworld.edits import EDITS

PRIMARY = ("dense", "geneval")
SECONDARY = (
    "understanding",
    "reconstruction",
    "reconstruction_exact",
    "dense_placed",
    *GENEVAL_TASKS,
)
# For experiments that score edits: correct edits, requested changes, preserved objects, and correct edits by kind.
EDITED = ("edit", "edit_followed", "edit_kept", *(f"edit_{kind}" for kind in EDITS))
TITLES = {
    "edit": "Edits of held-out images: done, and nothing else changed",
    "edit_followed": "Edits: what was asked for is there",
    "edit_kept": "Edits: all else stayed",
    **{f"edit_{kind}": f"Edits: {kind}" for kind in EDITS},
    "dense": "Dense prompts: share of facts",
    "geneval": "GenEval's six tasks: accuracy",
    "understanding": "Questions about held-out images: exact answers",
    "reconstruction": "Held-out images reconstructed: objects kept",
    "reconstruction_exact": "Held-out images reconstructed: whole scene exact",
    "dense_placed": "Dense prompts with places: share of facts",
    "single_object": "Single object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour of two objects",
}
ARMS = ("base", "sft", "reca", "shuffled")
COMPARED = (("reca", "sft"), ("reca", "base"), ("reca", "shuffled"), ("sft", "base"))

Scores = Mapping[str, Any]  # one run's scores.json
Chosen = Mapping[str, Mapping[str, float]]  # arm -> dense | geneval -> guidance
Items = Mapping[str, Mapping[str, Mapping[str, float]]]  # run -> outcome -> item -> score


def only_guidance(scores: Iterable[Scores]) -> dict[str, dict[str, float]]:
    """The guidance of each arm if there was no choice to make; ValueError if a run has several levels."""
    chosen: dict[str, dict[str, float]] = {}
    for score in scores:
        levels = list(score["by_guidance"])
        if len(levels) != 1:
            raise ValueError(
                f"{score['run']}: sampled at guidance levels {', '.join(levels)}, but none was chosen; "
                "run `reca choose` on development scores"
            )
        found = [name for name in (*PRIMARY, "edit") if name in score["summary"]]
        chosen.setdefault(arm_of(score["run"]), {}).update(dict.fromkeys(found, float(levels[0])))
    return chosen


def guidance_of(name: str, chosen: Mapping[str, float]) -> float | None:
    """The guidance at which an outcome is reported: one choice for GenEval's tasks, another for dense prompts."""
    if name.startswith("dense"):
        return chosen["dense"]
    if name in EDITED:
        return chosen["edit"]
    return chosen["geneval"] if name == "geneval" or name in GENEVAL_TASKS else None


def scores_by_arm(scores: Iterable[Scores]) -> dict[str, list[Scores]]:
    """Runs by arm, base first, in order of their seeds; arms without runs are omitted."""
    ordered = sorted(scores, key=lambda score: score["seed"])
    by_arm = {arm: [s for s in ordered if arm_of(s["run"]) == arm] for arm in ARMS}
    return {arm: found for arm, found in by_arm.items() if found}


def outcomes(scores: Sequence[Scores], chosen: Chosen, items: Items) -> list[dict[str, Any]]:
    """All measured outcomes of a model, primary ones first.

    Differences between arms have an interval over seeds, and one over items if scores per item are known.
    """
    by_arm = scores_by_arm(scores)
    names = EDITED if scores[0].get("benchmark") == "laptop_edit" else measured(scores)
    rows = [_outcome(name, by_arm, chosen) for name in names]
    for row in rows:
        for pair, gap in row["differences"].items():
            first, second = (_matrix(items, by_arm[arm], row["name"]) for arm in pair.split(" - "))
            if first and second:
                gap["over_items"] = statistics.bootstrap_difference(first, second)
    return rows


def measured(scores: Sequence[Scores]) -> list[str]:
    """Names of the measured outcomes; benchmarks may have no questions or no reconstructions."""
    absent = {
        name for name in ("understanding", "reconstruction") if name not in scores[0]["summary"]
    }
    return [name for name in (*PRIMARY, *SECONDARY) if name.split("_")[0] not in absent]


def _outcome(name: str, by_arm: Mapping[str, list[Scores]], chosen: Chosen) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "title": TITLES[name],
        "primary": name in (*PRIMARY, "edit"),
    }
    for arm, found in by_arm.items():
        level = guidance_of(name, chosen[arm])
        values = [score["summary"][name] for score in found]
        row[arm] = {**statistics.summary(values), "guidance": level}
    row["differences"] = {
        f"{a} - {b}": statistics.difference(row[a]["per_seed"], row[b]["per_seed"])
        for a, b in COMPARED
        if a in row and b in row
    }
    return row


def _matrix(items: Items, runs: Sequence[Scores], name: str) -> list[list[float]]:
    """Scores of the same items in the same order, one row per seed; empty without scores per item."""
    scored = [items[score["run"]].get(name, {}) for score in runs]
    return [[row[item] for item in sorted(row)] for row in scored if row]


def understanding_by_kind(scores: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """Mean, interval and values by seed, by kind of question and arm; `overall` last."""
    by_arm = scores_by_arm(scores)
    start = "understanding."
    names = {name for score in scores for name in score["summary"] if name.startswith(start)}
    if not names:
        return {}

    def row(name: str) -> dict[str, Any]:
        return {
            arm: statistics.summary([score["summary"][name] for score in found])
            for arm, found in by_arm.items()
        }

    found = {name.removeprefix(start): row(name) for name in sorted(names)}
    return {**found, "overall": row("understanding")}
