"""The contents of the page's sections, as plain data for the template: rows of tables, and figures as SVG markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from reca.config.compose import section
from reca.config.recipe import ARMS as TRAINED
from reca.config.recipe import Recipe, for_arm
from reca.evaluation.choose import CHOSEN_BY
from reca.evaluation.tasks.laptop_prompts import GENEVAL_TASKS, STRICT
from reca.report import figures, pictures, wording
from reca.report.outcomes import ARMS, BASE_READING, EDITED, STRICTLY, TITLES, reading
from reca.report.trained import DRAWING

SHOWN = ("dense", "geneval", STRICT, "understanding", "reconstruction")  # laptop report, part 1.4
BY_TASK = ("geneval", *GENEVAL_TASKS, *STRICTLY, "dense", "dense_placed")
READING = {"i2t": "Answering questions about images", "text": "Text only"}
TASK_NAMES = {
    "reca": "generated from embeddings",
    "t2i": "generated from captions",
    "i2t": "questions answered",
    "text": "texts",
    "edit": "edits",
}

Model = Mapping[str, Any]


def view(experiment: Mapping[str, Any], model: Model, benchmark: str) -> dict[str, Any]:
    """Everything that the template shows for one model."""
    rows = {row["name"]: row for row in model["outcomes"]}
    arms = [arm for arm in ARMS if arm in rows["dense"]]
    edits = next((b for b in experiment["benchmarks"].values() if b["kind"] == "laptop_edit"), None)
    swept = [n for n in CHOSEN_BY if model["sweep"] and n in model["chosen"][arms[0]]]
    recipe = section(Recipe, experiment["models"][model["name"]]["align"])
    trained = compute(recipe, model["logs"])
    return {
        **{
            name: model[name]
            for name in ("name", "bases", "costs", "trail", "run", "chosen", "chance")
        },
        "arms": arms,
        "seeds": model["seeds"],
        "findings": wording.findings(model),
        "kept": list(recipe.active()),
        "primary": [
            _outcome(rows[name], arms, model["chance"].get(name))
            for name in sorted(SHOWN, key=lambda name: not rows.get(name, {}).get("primary"))
            if name in rows
        ],
        "two_readings": any(BASE_READING in row for row in rows.values()),
        "curve": [_curve(name, line) for name, line in model["curve"].items()],
        "sweep": [_sweep(name, model) for name in swept],
        "edits": None if edits is None else _edits(model, rows, arms, edits),
        "grids": pictures.grids(model, experiment["benchmarks"][benchmark]),
        "tasks": [
            _task(rows[name], arms, model["chance"].get(name)) for name in BY_TASK if name in rows
        ],
        "understanding": [
            {"title": kind, "cells": [cells[arm] for arm in arms]}
            for kind, cells in model["understanding"].items()
        ],
        "losses": losses(model["logs"]),
        "recipe": recipe,
        "trained": trained,
        "equal": wording.compute(trained) if trained else "",
        "caches": [_cache(entry, recipe, model["logs"]) for entry in model["caches"]],
        "totals": {
            name: sum(row[name] for row in model["costs"]) for name in ("jobs", "wall", "cpu")
        },
    }


# ---- edits ---------------------------------------------------------------------------------------
def _edits(
    model: Model, rows: Mapping[str, Any], arms: Sequence[str], benchmark: Mapping[str, Any]
) -> dict[str, Any]:
    """Scores of the edits by arm with both chance levels, a figure of the main score, and the first images."""
    found = model["edits"]
    table = [
        {
            "title": rows[name]["title"].removeprefix("Edits: ").split(":")[-1].strip(),
            "name": name,
            "chances": [found["chance"][kind][name] for kind in ("unchanged", "random")],
            "cells": [reading(rows[name])[arm] for arm in arms],
        }
        for name in EDITED
    ]
    lead = _outcome(rows["edit"], arms, found["chance"]["random"]["edit"])
    return {"lead": lead, "table": table, "rows": pictures.edited(found, benchmark)}


# ---- outcomes ------------------------------------------------------------------------------------
def _outcome(row: Mapping[str, Any], arms: Sequence[str], chance: float | None) -> dict[str, Any]:
    main = reading(row)
    figure = figures.intervals({arm: main[arm] for arm in arms}, row["title"], chance)
    own = {"cells": [row[arm] for arm in arms], "gap": row["differences"].get("reca - sft")}
    return {
        "title": row["title"],
        "primary": row["primary"],
        "figure": Markup(figure),
        "gaps": _gaps(main),
        "own": own if BASE_READING in row else None,
    }


def _gaps(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"first": first, "second": second, **gap}
        for pair, gap in row["differences"].items()
        for first, second in [pair.split(" - ")]
    ]


def _curve(name: str, line: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A figure of one outcome on test prompts by guidance."""
    title = TITLES[name].split(":")[0]
    by_level = {
        arm: {float(level): summary for level, summary in levels.items()}
        for arm, levels in line.items()
    }
    figure = figures.bands(by_level, "guidance", f"{title}, test prompts")
    return {"title": title, "figure": Markup(figure)}


def _task(row: Mapping[str, Any], arms: Sequence[str], chance: float | None) -> dict[str, Any]:
    names = {"geneval": "All six tasks", STRICT: "All six tasks, and nothing more"}
    title = names.get(row["name"], TITLES[row["name"]].split(":")[0])
    cells = [reading(row)[arm] for arm in arms]
    return {"title": title, "name": row["name"], "chance": chance, "cells": cells}


def _sweep(name: str, model: Model) -> dict[str, Any]:
    levels = {arm: model["sweep"][arm][name] for arm in ARMS if arm in model["sweep"]}
    chosen = {arm: model["chosen"][arm][name] for arm in levels}
    positions = sorted({level for found in levels.values() for level in found}, key=float)
    title = TITLES[name].split(":")[0]
    table = [
        {
            "arm": arm,
            "cells": [
                {
                    "mean": sum(found[level]) / len(found[level]) if level in found else None,
                    "chosen": float(level) == chosen[arm],
                }
                for level in positions
            ],
        }
        for arm, found in levels.items()
    ]
    figure = Markup(figures.sweep(levels, chosen, f"{title} by guidance, development prompts"))
    return {"title": title, "figure": figure, "levels": positions, "table": table, "chosen": chosen}


# ---- training ------------------------------------------------------------------------------------
Logs = Mapping[str, Sequence[Mapping[str, Any]]]  # run -> rows of log.jsonl


def _runs_of(arm: str, logs: Logs) -> dict[str, Sequence[Mapping[str, Any]]]:
    return {run: rows for run, rows in logs.items() if run.rsplit("-", 1)[0] == arm}


def losses(logs: Logs) -> list[dict[str, Any]]:
    """One figure for the generation loss under both conditions, and one per understanding task."""
    groups: dict[str, tuple[str, ...]] = {"Generation, by condition": DRAWING}
    groups |= {title: (task,) for task, title in READING.items()}
    found = []
    for title, tasks in groups.items():
        series = {arm: lines for arm in TRAINED if (lines := _lines(_runs_of(arm, logs), tasks))}
        if series:
            figure = Markup(figures.curves(series, f"Loss, {title.lower()}"))
            found.append({"title": title, "figure": figure, "arms": list(series)})
    return found


def _lines(runs: Logs, tasks: Sequence[str]) -> dict[str, list[figures.Point]]:
    lines = {}
    for run, rows in runs.items():
        points = [
            (float(row["step"]), row["loss"][task])
            for row in rows
            for task in tasks
            if row["loss"].get(task) is not None  # a skipped step has no loss
        ]
        if points:
            lines[run] = figures.thinned(points)
    return lines


def compute(recipe: Recipe, logs: Logs) -> dict[str, dict[str, Any]]:
    """Steps, samples and loss tokens of one run of each trained arm; tokens are a mean over its seeds."""
    found: dict[str, dict[str, Any]] = {}
    for arm in TRAINED:
        runs = list(_runs_of(arm, logs).values())
        if not runs:
            continue
        steps = max(len(rows) for rows in runs)
        batches = {
            task: recipe.accumulation * entry.batch
            for task, entry in for_arm(recipe, arm).active().items()
        }
        tokens = [sum(sum(row.get("tokens", {}).values()) for row in rows) for rows in runs]
        found[arm] = {
            "steps": steps,
            "tasks": [(TASK_NAMES[task], batch) for task, batch in batches.items()],
            "samples": steps * sum(batches.values()),
            "tokens": sum(tokens) / len(tokens),
        }
    return found


def _cache(entry: Mapping[str, Any], recipe: Recipe, logs: Logs) -> dict[str, Any]:
    """How many rows training read from a cache, and the encoding time this saved."""
    uses = {"draw": DRAWING, "read": ("i2t",)}.get(entry["use"], ())
    reads = 0
    for run, rows in logs.items():
        active = for_arm(recipe, run.rsplit("-", 1)[0]).active()
        batch = sum(task.batch for name, task in active.items() if name in uses)
        reads += len(rows) * recipe.accumulation * batch
    avoided = max(0, reads - entry["rows"])
    each = (entry["seconds"] or 0.0) / max(1, entry["rows"])
    return {**entry, "reads": reads, "avoided": avoided, "saved": avoided * each}
