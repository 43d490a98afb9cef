"""Three figures on why RecA works: over its steps, over what the base understands, and by its condition.

They are the paper's argument in miniature: transfer should grow with reconstruction, be limited by what is understood,
and need the model's own embeddings. The titles ask, as a run may answer otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from reca.report import figures
from reca.report.outcomes import ARMS, reading

Model = Mapping[str, Any]
FOLLOWED = ("base", "sft", "reca")
RECONSTRUCTION, DENSE = "reconstruction", "dense"


def argument(experiment: Mapping[str, Any], models: Sequence[Model]) -> list[dict[str, Any]]:
    """The figures for which the experiment names models that have run; empty without `why`."""
    asked, known = experiment.get("why") or {}, {model["name"]: model for model in models}
    parts = []
    steps = {
        experiment["models"][name]["align"]["steps"]: known[name]
        for name in asked.get("steps", ())
        if name in known
    }
    if len(steps) > 1:
        parts.append(_over_steps(steps))
    read = [known[name] for name in asked.get("understanding", ()) if name in known]
    if len(read) > 1:
        parts.append(_over_understanding(read))
    if asked.get("conditions") in known:
        parts.append(_by_condition(known[asked["conditions"]]))
    return parts


def _row(model: Model, name: str) -> Mapping[str, Any]:
    """An outcome of a model in its primary reading."""
    return reading(next(row for row in model["outcomes"] if row["name"] == name))


def _over_steps(models: Mapping[int, Model]) -> dict[str, Any]:
    """Objects kept and dense prompts after more and more steps; all arms start at the base."""
    found = []
    for name, title in ((RECONSTRUCTION, "Objects kept"), (DENSE, "Dense prompts")):
        rows = {steps: _row(model, name) for steps, model in sorted(models.items())}
        first = next(iter(rows.values()))
        series: dict[str, dict[float, Mapping[str, Any]]] = {
            arm: {0: first["base"], **{steps: row[arm] for steps, row in rows.items()}}
            for arm in ("sft", "reca")
            if all(arm in row for row in rows.values())
        }
        found.append(_figure(title, series, "steps", f"{title} over optimizer steps"))
    return {
        "title": "Does transfer grow with reconstruction?",
        "text": "One run of each arm, read after more and more of its steps; 0 is the base model.",
        "figures": found,
        "arms": ["sft", "reca"],
    }


def _over_understanding(models: Sequence[Model]) -> dict[str, Any]:
    """Dense prompts of bases that learned to read for more and more steps."""
    rows = [(_row(model, "understanding")["base"]["mean"], _row(model, DENSE)) for model in models]
    arms = [arm for arm in FOLLOWED if all(arm in row for _, row in rows)]
    series = {arm: {at: row[arm] for at, row in rows} for arm in arms}
    title = "Dense prompts"
    return {
        "title": "Does RecA transfer what is understood?",
        "text": "Base models whose reading was stopped early, and the arms that start from them.",
        "figures": [
            _figure(title, series, "questions the base answers", f"{title} by understanding")
        ],
        "arms": arms,
    }


def _by_condition(model: Model) -> dict[str, Any]:
    """Dense prompts and objects kept, with the condition replaced."""
    found = []
    for name, title in ((DENSE, "Dense prompts"), (RECONSTRUCTION, "Objects kept")):
        row = _row(model, name)
        cells = {arm: row[arm] for arm in ARMS if arm in row}
        drawn = figures.intervals(cells, f"{title} by condition", model.get("chance", {}).get(name))
        found.append({"title": title, "figure": Markup(drawn)})
    return {
        "title": "Does it take the model's own embeddings?",
        "text": "The same training with other embeddings, embeddings in a random basis, or none.",
        "figures": found,
        "arms": [],
    }


def _figure(
    title: str, series: Mapping[str, Mapping[float, Mapping[str, Any]]], axis: str, label: str
) -> dict[str, Any]:
    return {"title": title, "figure": Markup(figures.bands(series, axis, label))}
