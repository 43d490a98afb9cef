"""The report of an experiment: a self-contained page that works offline, and its numbers as
`outcomes.json` and `outcomes.csv`.

`outcomes.json` is a pure function of the scores. The page also shows the costs of the stages, so its bytes differ
between two computations of the same results, but not between two pages from one results tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reca.core import artifacts
from reca.report import collect, expectations, figures, scores, sections, why, wording
from reca.report.runs import runs_of

PAGE, OUTCOMES, TABLE = "index.html", "outcomes.json", "outcomes.csv"


def build(experiment: Mapping[str, Any], results: Path, out: Path) -> None:
    """Write `index.html`, `outcomes.json` and `outcomes.csv` of a resolved experiment into the folder `out`.

    Raises:
        ValueError: the experiment has no laptop benchmark, no model has scores, or the named stage is
            incomplete.
    """
    benchmark = laptop_benchmark(experiment)
    runs = runs_of(experiment)
    names = collect.scored_models(results, benchmark, experiment["models"], runs)
    editing = edit_benchmark(experiment)
    chance = collect.chance_levels(experiment["benchmarks"])
    readings = experiment["benchmarks"]
    models = [
        collect.model_report(results / name, benchmark, chance, editing, readings, runs)
        for name in names
    ]
    name = experiment["name"]
    found = scores.collect(results, name, runs={name: runs})
    verdicts = expectations.judged(name, experiment["expect"], found)
    artifacts.write_json(out / OUTCOMES, collect.outcomes_json(models, verdicts))
    artifacts.write_atomic(out / TABLE, collect.outcomes_csv(models))
    artifacts.write_atomic(out / PAGE, render(experiment, models, benchmark, verdicts))


def laptop_benchmark(experiment: Mapping[str, Any]) -> str:
    """The name of the experiment's benchmark of kind laptop; ValueError if it has none, as the page shows no other."""
    kinds = {name: entry["kind"] for name, entry in experiment["benchmarks"].items()}
    for name, kind in kinds.items():
        if kind == "laptop":
            return name
    raise ValueError(
        f"experiment {experiment['name']!r}: the report shows benchmarks of kind laptop, not "
        f"{', '.join(sorted(set(kinds.values())))}; read their scores.json, or add a laptop benchmark"
    )


def edit_benchmark(experiment: Mapping[str, Any]) -> str | None:
    """The name of the experiment's edit benchmark; None if it has none."""
    kinds = {name: entry["kind"] for name, entry in experiment["benchmarks"].items()}
    return next((name for name, kind in kinds.items() if kind == "laptop_edit"), None)


def render(
    experiment: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    benchmark: str,
    verdicts: Sequence[Mapping[str, Any]],
) -> str:
    """The page as HTML; all text from files is escaped, only the figures are inserted as markup."""
    configuration = yaml.safe_dump(dict(experiment), sort_keys=False, allow_unicode=True)
    return (
        _environment()
        .get_template("page.html")
        .render(
            experiment=experiment,
            benchmark=experiment["benchmarks"][benchmark],
            models=[sections.view(experiment, model, benchmark) for model in models],
            headline=wording.headline(models),
            argument=why.argument(experiment, models),
            expectations=verdicts,
            configuration=configuration,
            absent=[n for n in experiment["models"] if n not in {m["name"] for m in models}],
            names=figures.NAMES,
        )
    )


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("reca.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "score": score,
        "half": half_width,
        "seconds": seconds,
        "size": size,
        "count": wording.counted,
        "signed": wording.signed,
        "interval": wording.interval,
        "inside": wording.inside,
        "key": lambda arm: Markup(figures.key(arm)),
    }
    return found


# ---- how numbers are written ---------------------------------------------------------------------
def score(value: float | None) -> str:
    """A share with three decimals, as in `outcomes.json`; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def half_width(row: Mapping[str, Any]) -> str:
    """Half the width of the interval of a mean over seeds, `± 0.012`; empty for one seed."""
    if row["ci95"] is None:
        return ""
    low, high = row["ci95"]
    return f"\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}{(high - low) / 2:.3f}"


def seconds(value: float) -> str:
    """A duration: `8.2 s`, `4 min 10 s`, `3 h 05 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """A number of bytes in a suitable unit, `8.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
