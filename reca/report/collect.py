"""The contents of the report, collected from the results tree as plain data; `outcomes.json` is a part of it.

Reads only complete stages (those with a manifest) and verifies the hash of each file. Apart from the chance levels, all
numbers come from files, so that each can be traced back to the data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core import artifacts, documents
from reca.evaluation.choose import arm_of
from reca.evaluation.files import GUIDANCE, IMAGES, ITEMS, SWEEP
from reca.evaluation.tasks.laptop import CHANCE_PICTURES, CHANCE_PROMPTS
from reca.evaluation.tasks.laptop import chance as chance_of_laptop
from reca.evaluation.tasks.laptop_edit import SCORES as EDIT_SCORES
from reca.evaluation.tasks.laptop_edit import chance as chance_of_edits
from reca.evaluation.tasks.laptop_prompts import GENEVAL_TASKS, STRICT, guidance_of, test_seed
from reca.report import stages
from reca.report.outcomes import (
    ARMS,
    curves,
    only_guidance,
    outcomes,
    understanding_by_kind,
    with_second_reading,
)
from reca.report.runs import Runs, is_expected
from reca.report.scores import read
from reca.report.trained import trained_arms

LOG = "log.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; ValueError names the file and the damaged line."""
    try:
        return documents.lines(path)
    except ValueError as error:
        raise ValueError(f"{error}; run the stage again") from error


def scored_models(
    results: Path, benchmark: str, names: Iterable[str], runs: Runs | None = None
) -> list[str]:
    """The models of the experiment that have test scores of one of its `runs`; ValueError if none has."""
    found = [name for name in names if test_folders(results / name, benchmark, runs)]
    if not found:
        raise ValueError(
            f"{results}: no test scores of benchmark {benchmark!r}; run `snakemake` for this experiment"
        )
    return found


def test_folders(model: Path, benchmark: str, runs: Runs | None = None) -> list[Path]:
    """The complete score stages of a model's test runs (of `runs`, where given), sorted by run."""
    found = model.glob(f"*/{benchmark}/test/scores/{artifacts.MANIFEST}")
    return sorted(p.parent for p in found if is_expected(runs, model.name, p.parents[3].name))


def item_scores(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The mean scores of a run by outcome and item (prompt, question, scene); prompts at the chosen guidance."""
    found: dict[str, dict[str, list[float]]] = {}
    for item in rows:
        for name, value in _values(item):
            if guidance_of(name, chosen) in (None, item.get("guidance")):
                found.setdefault(name, {}).setdefault(item["id"], []).append(value)
    return {
        name: {item: sum(values) / len(values) for item, values in by_item.items()}
        for name, by_item in found.items()
    }


def _values(item: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The outcomes that one row of `items.jsonl` belongs to, with its score."""
    if item["kind"] == "question":
        return [("understanding", item["score"])]
    if item["kind"] == "reconstruction":
        return [("reconstruction", item["objects"])]
    name = "geneval" if item["task"] in GENEVAL_TASKS else item["task"]
    strict = [(STRICT, item["strict"])] if "strict" in item else []
    return [(name, item["score"]), *strict]


def edit_item_scores(
    rows: Sequence[Mapping[str, Any]], level: float
) -> dict[str, dict[str, float]]:
    """The scores of a run by outcome and edit, at the chosen guidance."""
    found: dict[str, dict[str, float]] = {}
    for item in (row for row in rows if row["guidance"] == level):
        for name in EDIT_SCORES:
            found.setdefault(name, {})[item["id"]] = item[name]
        found.setdefault(f"edit_{item['task']}", {})[item["id"]] = item["edit"]
    return found


def chance_levels(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The chance levels of the toy world's benchmarks by name, which depend only on their configuration."""
    found: dict[str, Any] = {}
    for name, entry in benchmarks.items():
        if entry["kind"] == "laptop":
            sizes = CHANCE_PROMPTS, test_seed(entry, "prompts"), CHANCE_PICTURES
            found[name] = chance_of_laptop("test", *sizes)
        elif entry["kind"] == "laptop_edit":
            found[name] = chance_of_edits("test", entry["prompts"], test_seed(entry, "edits"))
    return found


def edits_report(
    model: Path,
    benchmark: str,
    chosen: Mapping[str, Any],
    chance: Mapping[str, Any],
    *,
    at_base: bool = False,
    runs: Runs | None = None,
) -> dict[str, Any]:
    """Outcomes, chance levels, items and images of a model's edits, and the folders that they come from.

    `at_base`: they were also sampled at the guidance chosen for the base.
    """
    folders = test_folders(model, benchmark, runs)
    scores = [read(folder) for folder in folders]
    found = {score["run"]: folder for score, folder in zip(scores, folders, strict=True)}
    items = {run: read_lines(artifacts.verified(folder / ITEMS)) for run, folder in found.items()}
    one = only_guidance(scores) if "edit" not in next(iter(chosen.values())) else chosen
    pictures = {run: folder.parent / "samples" / IMAGES for run, folder in found.items()}

    def read_at(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
        level = {run: levels[arm_of(run)]["edit"] for run in items}
        by_item = {run: edit_item_scores(rows, level[run]) for run, rows in items.items()}
        return _outcomes(model, scores, levels, by_item)

    own, shared = read_at(one), of_base(one)
    return {
        "outcomes": with_second_reading(own, read_at(shared)) if at_base else own,
        "chosen": shared if at_base else one,
        "chance": chance[benchmark],
        "items": items,
        "samples": {run: artifacts.verified(path) for run, path in pictures.items()},
        "folders": folders,
    }


def _outcomes(
    model: Path,
    scores: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Any],
    items: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The outcomes of a model; ValueError names its folder."""
    try:
        return outcomes(scores, levels, items)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error


def trained_folders(model: Path, runs: Runs | None = None) -> list[Path]:
    """The complete stages of training, `ARM/seed-N`, and of bases that a seed has of its own."""
    found = sorted(path.parent for path in model.glob(f"*/seed-*/{artifacts.MANIFEST}"))
    seeds = {run.rpartition("-")[2] for run in (runs or {}).get(model.name, ())}
    return [
        folder
        for folder in found
        if is_expected(runs, model.name, _run(folder))
        or (folder.parent.name == "base" and folder.name.removeprefix("seed-") in seeds)
    ]


def _run(trained: Path) -> str:
    """The run of a folder `ARM/seed-N`, such as `reca-0`."""
    return f"{trained.parent.name}-{trained.name.removeprefix('seed-')}"


def training_logs(folders: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows of `log.jsonl` by run (such as `reca-0`), for the folders of arms."""
    return {
        _run(folder): read_lines(artifacts.verified(folder / LOG))
        for folder in folders
        if folder.parent.name != "base"
    }


def guidance_choice(model: Path, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{"chosen", "sweep"}` as written by `reca choose`; an empty sweep if the model has one guidance level."""
    folder = model / "guidance"
    if (folder / artifacts.MANIFEST).is_file():
        files = (artifacts.verified(folder / name) for name in (GUIDANCE, SWEEP))
        return {key: value for file in files for key, value in artifacts.read_json(file).items()}
    return {"chosen": only_guidance(scores), "sweep": {}}


def of_base(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The guidance chosen for the base, for every arm."""
    return dict.fromkeys(chosen, chosen.get("base"))


def evaluated(
    model: Path, benchmark: str, *, at_base: bool, runs: Runs | None = None
) -> dict[str, Any]:
    """A model's test runs: `folders`, `scores`, and by run `items` and `samples` (its images); the choice of guidance
    as of `guidance_choice`, and `shown_at`, the guidance that is read first.

    `at_base`: arms are read first at the guidance chosen for the base; `runs`: the experiment's (default: all).
    """
    folders = test_folders(model, benchmark, runs)
    scores = [read(folder) for folder in folders]
    found = {score["run"]: folder for score, folder in zip(scores, folders, strict=True)}
    items = {run: read_lines(artifacts.verified(folder / ITEMS)) for run, folder in found.items()}
    pictures = {run: folder.parent / "samples" / IMAGES for run, folder in found.items()}
    choice = guidance_choice(model, scores)
    if not at_base:  # the strict rule judges the images that were sampled for GenEval's
        kept = {a: {n: v for n, v in c.items() if n != STRICT} for a, c in choice["chosen"].items()}
        choice = {**choice, "chosen": kept}
    return {
        "folders": folders,
        "scores": scores,
        "items": items,
        "samples": {run: artifacts.verified(path) for run, path in pictures.items()},
        **choice,
        "shown_at": of_base(choice["chosen"]) if at_base else choice["chosen"],
    }


def model_report(
    model: Path,
    benchmark: str,
    chance: Mapping[str, Any],
    editing: str | None = None,
    readings: Mapping[str, Any] | None = None,
    runs: Runs | None = None,
) -> dict[str, Any]:
    """Everything about one model: outcomes, sweep, understanding, training logs, items, stages and their costs.

    `chance`: levels by benchmark (`chance_levels`); `editing`: the name of the edit benchmark, if there is one;
    `readings`: the benchmarks' configuration by name, which says at which guidance test prompts were sampled;
    `runs`: the experiment's (default: all on disk).
    """
    asked = (readings or {}).get(benchmark, {})
    at_base, on_curve = asked.get("base_guidance", False), asked.get("curve_prompts", 0)
    test = evaluated(model, benchmark, at_base=at_base, runs=runs)
    folders, scores, items = test["folders"], test["scores"], test["items"]
    chosen = test["chosen"]

    def read_at(levels: Mapping[str, Any]) -> list[dict[str, Any]]:
        by_item = {run: item_scores(rows, levels[arm_of(run)]) for run, rows in items.items()}
        return _outcomes(model, scores, levels, by_item)

    found = read_at(chosen)
    if at_base:
        found = with_second_reading(found, read_at(of_base(chosen)))
    edited = None
    if editing is not None:
        both = (readings or {}).get(editing, {}).get("base_guidance", False)
        edited = edits_report(model, editing, chosen, chance, at_base=both, runs=runs)
    more = edited["folders"] if edited else []
    trained = trained_folders(model, runs)
    graph = stages.walk([*folders, *more, *trained])
    logs = training_logs(trained)
    return {
        "name": model.name,
        "bases": sum(folder.parent.name == "base" for folder in trained) or 1,
        "outcomes": [*found, *(edited["outcomes"] if edited else [])],
        "trained": trained_arms(logs, found),
        "curve": curves(scores, items, on_curve) if on_curve else {},
        "edits": edited,
        **{name: test[name] for name in ("chosen", "sweep", "items", "samples", "shown_at")},
        "chance": chance[benchmark],
        "understanding": understanding_by_kind(scores),
        "seeds": sorted({score["seed"] for score in scores}),
        "logs": logs,
        "costs": stages.costs(graph),
        "caches": stages.caches(graph),
        "trail": stages.trail(graph),
        "run": artifacts.read_run(folders[0]),
    }


def outcomes_csv(models: Sequence[Mapping[str, Any]]) -> str:
    """The means of all outcomes as a CSV table for plots, one row per model and arm; limits are empty for one seed."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["outcome", "model", "arm", "name", "mean", "low", "high"])
    for model in models:
        for row in model["outcomes"]:
            for arm in (arm for arm in ARMS if arm in row):
                low, high = row[arm]["ci95"] or ("", "")
                title = f"{model['name']}, {row['name']}, {arm}"
                mean = row[arm]["mean"]
                writer.writerow([title, model["name"], arm, row["name"], mean, low, high])
    return table.getvalue()


def outcomes_json(
    models: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The machine-readable part: the numbers of the page, and the verdicts on expectations if there are any."""
    found = [
        {"name": model["name"]}
        | ({"bases": model["bases"]} if model["bases"] > 1 else {})
        | {"outcomes": model["outcomes"]}
        | {name: model[name] for name in ("trained", "curve") if model[name]}
        for model in models
    ]
    return {"models": found} | ({"expectations": list(verdicts)} if verdicts else {})
