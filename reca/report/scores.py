"""Reproduced scores: reads every `scores.json` below a results folder, and pools numbers over seeds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reca.config.scale import split
from reca.core import artifacts
from reca.core.documents import fields
from reca.evaluation import readings
from reca.evaluation.files import SCORES
from reca.report.paper_map import PUBLISHED, REPEATED, Metric, Run
from reca.report.runs import Runs, is_expected
from reca.report.statistics import t_interval

_log = logging.getLogger(__name__)


def read(folder: Path) -> dict[str, Any]:
    """The `scores.json` of a complete stage after verifying its hash; ValueError names a missing or invalid part."""
    path = artifacts.verified(folder / SCORES)
    return fields(artifacts.read_json(path), path, benchmark=str, summary=dict, coverage=dict)


def collect(
    results: Path,
    experiment: str | None = None,
    scale: str | None = None,
    runs: Mapping[str, Runs] | None = None,
) -> list[dict[str, Any]]:
    """All complete test scores below an experiment's folder, or below a folder of experiments.

    `experiment`: the experiment of these results (default: by the folder's name). In a row, `kind` is the benchmark's
    kind and `benchmark` its name in the experiment. `scale` is given, else that of the folder `results`, None for the
    published sizes; scores of other scales in deeper folders are left out and counted, so that they never mix.
    `runs` by experiment: other runs of its models are left out and named, as they are of an earlier recipe.
    """
    found, left_out, other_runs = [], 0, []
    scale = scale or split(results.name)[1]
    for path in sorted(results.glob(f"**/test/scores/{artifacts.MANIFEST}")):
        parts = path.parent.relative_to(results).parts
        at = [split(part)[1] for part in (results.name, *parts[:-5])]
        if next(filter(None, at[::-1]), None) != scale:
            left_out += 1
            continue
        named = experiment or split(parts[-6] if len(parts) == 6 else results.name)[0]
        model, run, benchmark = parts[-5:-2]
        if not is_expected((runs or {}).get(named), model, run):
            other_runs.append(f"{model}/{run}")
            continue
        arm, _, seed = run.rpartition("-")
        scores = read(path.parent)
        found.append(
            {"experiment": named, "model": model, "arm": arm, "seed": seed, "benchmark": benchmark,
             "kind": scores["benchmark"], "folder": path.parent, "scores": scores, "scale": scale}
        )  # fmt: skip
    if left_out:
        of = f"scales other than {scale}" if scale else "a smaller scale"
        _log.warning("%s: %d scores of %s are left out", results, left_out, of)
    if other_runs:
        named_once = ", ".join(dict.fromkeys(other_runs))
        _log.warning("%s: no arm or seed of the experiment, left out: %s", results, named_once)
    return found


def reproduced(
    found: Iterable[Mapping[str, Any]], run: Run, metric: Metric
) -> dict[str, Any] | None:
    """The reproduced number for a cell: the mean over seeds with its interval, scorer and coverage.

    The interval is a bootstrap over prompts for one seed, a t interval over seeds for several. All seeds are of one
    experiment: `run.experiment`, else the first of `PUBLISHED` that has the run, a complete one before a partial one.
    `named` says that runs of this model are taken from several experiments, so that a reader wants to know which.
    """
    found = list(found)
    mine = [
        row
        for row in found
        if (row["model"], row["arm"], row["benchmark"]) == (run.model, run.arm, metric.benchmark)
    ]
    mine = (
        [row for row in mine if row["experiment"] == run.experiment]
        if run.experiment
        else _published(mine, run)
    )
    values = [row["scores"]["summary"].get(metric.name) for row in mine]
    known = [metric.factor * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    own: list[float] | None = mine[0]["scores"]["intervals"].get(metric.name)
    limits = t_interval(known) or (own and [metric.factor * value for value in own])
    return {
        "value": sum(known) / len(known),
        "interval": limits,
        "over": "seeds" if len(known) > 1 else "prompts",
        "seeds": len(known),
        "label": " ".join(sorted({row["scores"]["label"] for row in mine})),
        "coverage": min(row["scores"]["coverage"]["share"] for row in mine),
        "partial": any(row["scores"]["partial"] for row in mine),
        "readings": _readings(mine),
        "experiment": mine[0]["experiment"],
        "named": not run.experiment
        and len({r["experiment"] for r in found if r["model"] == run.model} & set(PUBLISHED)) > 1,
        "scale": mine[0]["scale"],
    }


def _readings(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The number of doubtful replies over all seeds, by kind."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update(readings.counts(row["scores"]))
    return dict(found)


def _published(rows: Iterable[Mapping[str, Any]], run: Run) -> list[Mapping[str, Any]]:
    """Those of a model's rows that are of its published recipe; of a variant that repeats it if nothing else is."""
    rows = list(rows)
    order = (*PUBLISHED, *(name for name, arms in REPEATED.items() if run.arm in arms))
    by = {name: [row for row in rows if row["experiment"] == name] for name in order}
    there = [found for found in by.values() if found]
    whole = [found for found in there if not any(row["scores"]["partial"] for row in found)]
    return next(iter(whole or there), [])
