"""Every table of the paper: the reported value with its source next to the reproduced value, or `not run`.

The two are kept in separate columns: reported numbers with their source, reproduced ones with interval, scorer, number
of seeds and coverage of the benchmark. A model that only we train with RecA has rows marked
`ours, no reported value`; their reported column is empty. Experiments with own images, models or recipes have a table
of their own and fill no cell of the paper's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reca.core import artifacts
from reca.evaluation import readings
from reca.report import expectations
from reca.report.paper_map import (
    COLUMNS,
    PUBLISHED,
    TITLES,
    VARIANTS,
    Metric,
    Run,
    own_rows,
    reported_rows,
    run_of,
)
from reca.report.runs import Runs
from reca.report.scores import collect, reproduced

TABLES, PAGE, TEXT = "tables.json", "index.html", "tables.md"
EXPECTED = "expectations.json"
RUN, NOT_RUN, FOREIGN = "run", "not run", "other people's model"
OWN = "ours, no reported value"
OTHERS = "other_experiments"
OWN_RUN, OWN_NOT_RUN = "run (ours)", "not run (ours)"
OTHER_RUN = "run (other experiments)"
Scores = Mapping[str, Any]


def reported() -> dict[str, Any]:
    """The transcribed numbers of the paper, with their sources under `_sources`."""
    return json.loads(files("reca.report").joinpath("paper_results.json").read_text())


# ---- the tables --------------------------------------------------------------------------------------
def tables(
    found: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Every table with a cell per number: the reported value and its source, the reproduced value or why there is none.

    `verdicts` (from `expectations.judged`) add to their cells whether the reproduced value is within tolerance.
    """
    transcribed = reported()
    result = []
    for name, columns in COLUMNS.items():
        table = transcribed[name]
        rows = [*_reported(name, table, found, verdicts), *_own(name, found, verdicts)]
        result.append(
            {
                "name": name,
                "title": TITLES[name],
                "source": table["_source"],
                "note": table.get("note"),
                "columns": [c for c in columns if any(c == x["column"] for r in rows for x in r["cells"])],
                "rows": rows,
            }
        )  # fmt: skip
    return [*result, *_others(found)]


def _others(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table with the overall scores of experiments that are not the paper's; none without such scores.

    The toy world's benchmarks have no overall score; an experiment's own report shows what they have.
    """
    known = {*PUBLISHED, *VARIANTS}
    other = [
        row
        for row in found
        if row["experiment"] not in known and "overall" in row["scores"]["summary"]
    ]
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in other))
    rows = [
        {
            "row": run.model,
            "arm": run.arm,
            "mark": f"experiment {run.experiment}, no reported value",
            "cells": [
                {"column": name, "reported": None, "status": OTHER_RUN, **ours}
                for name in benchmarks
                if (ours := _ours(run, Metric(name), other, ()))["reproduced"]
            ],
        }
        for run in dict.fromkeys(Run(row["model"], row["arm"], row["experiment"]) for row in other)
    ]
    about = {"source": "nothing; these experiments are not the paper's", "note": None}
    table = {"name": OTHERS, "title": "Other experiments: overall scores", **about}
    return [table | {"columns": benchmarks, "rows": rows}] if rows else []


def _reported(
    name: str,
    table: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
) -> Iterable[dict[str, Any]]:
    """The transcribed rows of a table."""
    for row, arm, values in reported_rows(name, dict(table)):
        run = run_of(name, row, arm)
        missing = NOT_RUN if run or name.startswith("ablation") else FOREIGN
        cells = [
            {"column": c, "reported": value} | _ours(run, COLUMNS[name][c], found, verdicts)
            for c, value in values.items()
            if c in COLUMNS[name]
        ]
        for cell in cells:
            cell["status"] = RUN if cell["reproduced"] else missing
        yield {"row": row, "arm": arm, "mark": None, "cells": cells}


def _own(
    name: str, found: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Rows of models that only we train with RecA; nothing is reported for them."""
    for row, arm, run, columns in own_rows(name):
        cells = [
            {"column": c, "reported": None} | _ours(run, COLUMNS[name][c], found, verdicts)
            for c in columns
        ]
        for cell in cells:
            cell["status"] = OWN_RUN if cell["reproduced"] else OWN_NOT_RUN
        yield {"row": row, "arm": arm, "mark": OWN, "cells": cells}


def _ours(
    run: Run | None,
    metric: Metric,
    found: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The reproduced side of a cell, and what the experiment that it comes from expects of it."""
    ours = reproduced(found, run, metric) if run else None
    if run and ours:
        run = replace(run, experiment=ours["experiment"])
    stated = expectations.of_cell(verdicts, run, metric) if run else None
    return {
        "reproduced": ours,
        "expected": _stated(stated, metric) if stated else None,
        "verdict": stated["verdict"] if stated else None,
    }


def _stated(verdict: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """An expectation in the paper's unit."""
    scaled = {n: metric.factor * verdict[n] for n in ("value", "tolerance")}
    return {
        **scaled,
        "range": [metric.factor * x for x in verdict["range"]],
        "metric": verdict["metric"],
        "source": verdict["source"],
    }


def counts(made: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The number of cells by status."""
    found: dict[str, int] = {}
    for table in made:
        for row in table["rows"]:
            for cell in row["cells"]:
                found[cell["status"]] = found.get(cell["status"], 0) + 1
    return found


# ---- writing -----------------------------------------------------------------------------------------
def build(
    results: Path,
    out: Path,
    title: str = "The paper's tables",
    expect: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    scale: str | None = None,
    runs: Mapping[str, Runs] | None = None,
) -> dict[str, int]:
    """Write `tables.json`, `expectations.json`, `tables.md` and `index.html` to `out`; returns cell counts by status.

    `expect`: the expectations by experiment name. `scale` and `runs`: whose scores to take (default: as `collect`).
    """
    found = collect(results, scale=scale, runs=runs)
    verdicts = [
        one
        for name, all_ in (expect or {}).items()
        for one in expectations.judged(name, all_, found)
    ]
    made = tables(found, verdicts)
    scale = next((row["scale"] for row in found if row["scale"]), None)
    title += f" ({not_a_result(scale)})" if scale else ""
    sources = reported()["_sources"]
    artifacts.write_json(out / TABLES, {"tables": made, "sources": sources, "cells": counts(made)})
    judged = {"expectations": verdicts, "counts": expectations.counts(verdicts)}
    artifacts.write_json(out / EXPECTED, judged)
    artifacts.write_atomic(out / TEXT, markdown(made, sources, verdicts, scale))
    artifacts.write_atomic(out / PAGE, page(made, sources, title, verdicts))
    return counts(made)


def shown(cell: Mapping[str, Any]) -> str:
    """The reproduced value of a cell as text."""
    ours = cell["reproduced"]
    if ours is None:
        return "" if cell["status"] == FOREIGN else NOT_RUN
    text = reached(ours)
    if ours["scale"]:
        text += f" ({not_a_result(ours['scale'])})"
    elif ours["partial"]:
        text += f" (partial: {ours['coverage']:.0%} scored)"
    elif cell["verdict"]:
        text += f", {cell['verdict']} {limits(cell['expected']['range'])}"
        text += f" ({cell['expected']['source']})" if cell["reported"] is None else ""
    return text


def not_a_result(scale: str) -> str:
    """What marks numbers of a smaller scale wherever they are shown."""
    return f"scale {scale}, not a result"


def reached(ours: Mapping[str, Any] | None) -> str:
    """A reproduced number as text, with its interval and the number of doubtful replies."""
    if ours is None:
        return "-"
    text = number(ours["value"])
    text += f" {limits(ours['interval'])}" if ours["interval"] else ""
    text += f" of {ours['experiment']}" if ours["named"] else ""
    doubtful = readings.text(ours["readings"])
    return f"{text} (replies: {doubtful})" if doubtful else text


def limits(pair: Sequence[float]) -> str:
    """An interval as text."""
    return f"[{number(pair[0])}, {number(pair[1])}]"


def number(value: Any) -> str:
    """A number in the paper's format: three decimals below 1, else two."""
    if value is None:
        return "-"
    if isinstance(value, int | float):
        return f"{value:.3f}" if abs(value) < 1.5 else f"{value:.2f}"
    return str(value)


def doubts_meant() -> str:
    """An explanation of the counts of doubtful replies next to a number."""
    return "; ".join(f"{kind}: {meaning}" for kind, meaning in readings.MEANING.items())


def markdown(
    made: Sequence[Mapping[str, Any]],
    sources: Mapping[str, str],
    verdicts: Sequence[Mapping[str, Any]] = (),
    scale: str | None = None,
) -> str:
    """All tables as Markdown, with cells `reported / reproduced`, then all expectations."""
    about = "Each cell: reported / reproduced [95 % interval], and whether that is within the stated range."
    mark = f" ({not_a_result(scale)})" if scale else ""
    lines = [f"# The paper's tables{mark}", "", about, "", f"Replies: {doubts_meant()}.", ""]
    for table in made:
        lines += [f"## {table['title']}", "", f"Reported: {table['source']}.", ""]
        lines.append("| row | " + " | ".join(table["columns"]) + " |")
        lines.append("|---" * (len(table["columns"]) + 1) + "|")
        for row in table["rows"]:
            cells = {cell["column"]: cell for cell in row["cells"]}
            texts = [
                f"{number(cells[c]['reported'])} / {shown(cells[c]) or '-'}" if c in cells else ""
                for c in table["columns"]
            ]
            name = f"{row['row']} ({row['arm']})" if row["arm"] else row["row"]
            name += f": {row['mark']}" if row["mark"] else ""
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
        lines.append("")
    if verdicts:
        lines += [
            "## Expectations",
            "",
            "| experiment | model | arm | metric | range | reproduced | verdict |",
        ]
        lines.append("|---" * 7 + "|")
        lines += [
            f"| {v['experiment']} | {v['model']} | {v['arm']} | {v['metric']} | {limits(v['range'])} | "
            f"{reached(v['reproduced'])} | {v['verdict']} |"
            for v in verdicts
        ]
        lines.append("")
    lines += ["## Sources of the reported numbers", ""]
    return "\n".join([*lines, *(f"- {key}: {text}" for key, text in sources.items()), ""])


def page(
    made: Sequence[Mapping[str, Any]],
    sources: Mapping[str, str],
    title: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A self-contained page that works offline; all text from files is escaped."""
    environment = Environment(
        loader=PackageLoader("reca.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "shown": shown, "reached": reached, "limits": limits}
    labels = sorted(
        {
            cell["reproduced"]["label"]
            for table in made
            for row in table["rows"]
            for cell in row["cells"]
            if cell["reproduced"]
        }
    )
    template = environment.get_template("paper.html")
    return template.render(
        tables=made,
        sources=sources,
        doubts=doubts_meant(),
        title=title,
        cells=counts(made),
        labels=labels,
        verdicts=verdicts,
        judged=expectations.counts(verdicts),
    )
