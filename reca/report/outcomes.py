"""Outcomes of a model from its test scores: mean, interval and values by seed for each arm, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reca.evaluation.choose import arm_of
from reca.evaluation.tasks.laptop import strict_means, task_means
from reca.evaluation.tasks.laptop_prompts import GENEVAL_TASKS, STRICT, guidance_of, number_of
from reca.report import statistics
from reca.toyworld.edits import EDITS

PRIMARY = ("dense", "geneval")
STRICT_PRIMARY = ("dense", STRICT)  # where arms are also read at the base's guidance
SECONDARY = (
    "understanding",
    "reconstruction",
    "reconstruction_exact",
    "dense_placed",
    *GENEVAL_TASKS,
)
# GenEval's tasks with nothing more in the image than the prompt asks for, which the official rule forgives.
STRICTLY = (STRICT, *(f"{STRICT}.{task}" for task in GENEVAL_TASKS))
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
TITLES |= {STRICT: "GenEval's six tasks, and nothing more in the image"}
TITLES |= {f"{STRICT}.{task}": f"{TITLES[task]}, and nothing more" for task in GENEVAL_TASKS}
BASE_READING = "at_base_guidance"  # of an outcome: all arms at the guidance chosen for the base
ARMS = ("base", "sft", "reca", "reca_only", "shuffled", "random_encoder", "template_only")
COMPARED = (
    ("reca", "sft"),
    ("reca", "base"),
    ("reca", "reca_only"),
    ("reca", "shuffled"),
    ("reca", "random_encoder"),
    ("reca", "template_only"),
    ("reca_only", "sft"),
    ("reca_only", "base"),
    ("sft", "base"),
)

Item = Mapping[str, Any]  # a row of items.jsonl
Scores = Mapping[str, Any]  # one run's scores.json
Chosen = Mapping[str, Mapping[str, float]]  # arm -> dense | geneval -> guidance
Curve = dict[str, dict[str, dict[str, Any]]]  # outcome -> arm -> guidance -> summary
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


def scores_by_arm(scores: Iterable[Scores]) -> dict[str, list[Scores]]:
    """Runs by arm, base first, in order of their seeds; arms without runs are omitted."""
    ordered = sorted(scores, key=lambda score: score["seed"])
    by_arm = {arm: [s for s in ordered if arm_of(s["run"]) == arm] for arm in ARMS}
    return {arm: found for arm, found in by_arm.items() if found}


def outcomes(scores: Sequence[Scores], chosen: Chosen, items: Items) -> list[dict[str, Any]]:
    """All measured outcomes of a model at the `chosen` guidance, primary ones first.

    Differences between arms are paired by seed and have an interval over seeds, and one over items if scores per item
    are known. ValueError if two arms that are compared have other seeds.
    """
    by_arm = scores_by_arm(scores)
    _demand_same_seeds(by_arm)
    names = EDITED if scores[0].get("benchmark") == "laptop_edit" else measured(scores)
    rows = [_outcome(name, by_arm, chosen) for name in names]
    for row in rows:
        for pair, gap in row["differences"].items():
            first, second = (_matrix(items, by_arm[arm], row["name"]) for arm in pair.split(" - "))
            if first and second:
                gap["over_items"] = statistics.bootstrap_difference(first, second)
    return rows


def _demand_same_seeds(by_arm: Mapping[str, list[Scores]]) -> None:
    for pair in COMPARED:
        if all(arm in by_arm for arm in pair):
            first, second = ([score["seed"] for score in by_arm[arm]] for arm in pair)
            if first != second:
                raise ValueError(
                    f"arm {pair[0]} has scores of seeds {first}, arm {pair[1]} of {second}; differences are paired "
                    "by seed, so finish the experiment with `snakemake`, or give both arms the same seeds"
                )


def with_second_reading(
    own: Sequence[dict[str, Any]], at_base: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The outcomes with each arm at its own guidance, and as `at_base_guidance` with all arms at the base's.

    The paper changes nothing but the weights, so the second is primary: of dense prompts and of GenEval's strict rule.
    """
    rows = []
    for row, other in zip(own, at_base, strict=True):
        primary = row["name"] in (*STRICT_PRIMARY, "edit")
        second = {
            key: value for key, value in other.items() if key not in ("name", "title", "primary")
        }
        guided = other.get("base", {}).get("guidance") is not None
        rows.append({**row, "primary": primary} | ({BASE_READING: second} if guided else {}))
    return sorted(rows, key=lambda row: not row["primary"])


def reading(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The primary reading of an outcome: at the base's guidance if it was read there, else at each arm's own."""
    found: Mapping[str, Any] = row.get(BASE_READING, row)
    return found


def curves(scores: Sequence[Scores], items: Mapping[str, Sequence[Item]], prompts: int) -> Curve:
    """Primary outcomes of the first `prompts` test prompts of every task by guidance, with intervals over seeds."""
    found: Curve = {}
    for arm, runs in scores_by_arm(scores).items():
        rows = [_by_level(items[run["run"]], prompts) for run in runs]
        for name in (*PRIMARY, STRICT):
            levels = {
                level: statistics.summary([row[level][name] for row in rows])
                for level in sorted(rows[0])
                if all(name in row.get(level, {}) for row in rows)
            }
            if levels:
                by_level = {str(level): summary for level, summary in levels.items()}
                found.setdefault(name, {})[arm] = by_level
    return found


def _by_level(items: Sequence[Item], prompts: int) -> dict[float, dict[str, float]]:
    """Outcomes of one run by guidance, over the first prompts of every task."""
    first = [i for i in items if i["kind"] == "prompt" and number_of(i["id"]) < prompts]
    found = {}
    for level in {item["guidance"] for item in first}:
        here = [item for item in first if item["guidance"] == level]
        strict = [(item["task"], item["strict"]) for item in here if "strict" in item]
        means = task_means((item["task"], item["score"]) for item in here)
        found[level] = means | strict_means(strict)
    return found


def measured(scores: Sequence[Scores]) -> list[str]:
    """Names of the measured outcomes; benchmarks may have no questions or no reconstructions."""
    absent = {
        name for name in ("understanding", "reconstruction") if name not in scores[0]["summary"]
    }
    strict = [name for name in STRICTLY if name in scores[0]["summary"]]
    return [n for n in (*PRIMARY, *SECONDARY, *strict) if n.split("_")[0] not in absent]


def _outcome(name: str, by_arm: Mapping[str, list[Scores]], chosen: Chosen) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "title": TITLES[name],
        "primary": name in (*PRIMARY, "edit"),
    }
    for arm, found in by_arm.items():
        level = guidance_of(name, chosen[arm])
        values = [_score_at(score, name, level) for score in found]
        row[arm] = {**statistics.summary(values), "guidance": level}
    row["differences"] = {
        f"{a} - {b}": statistics.difference(row[a]["per_seed"], row[b]["per_seed"])
        for a, b in COMPARED
        if a in row and b in row
    }
    return row


def _score_at(score: Scores, name: str, level: float | None) -> float:
    """One run's outcome at a guidance level, or the only one there is."""
    at: Mapping[str, float] = {} if level is None else score["by_guidance"].get(str(level), {})
    found: float = at[name] if name in at else score["summary"][name]
    return found


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
