"""Stated expectations (`expect:` of an experiment) against what was reached: within tolerance, outside, or not run.

A number is within where it is no further from the expected value than the tolerance. The interval is also
shown but does not decide. A partial score, or one of a smaller scale, is never compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reca.report.paper_map import Metric, Run
from reca.report.scores import reproduced

WITHIN, OUTSIDE, NOT_RUN = "within tolerance", "outside tolerance", "not run"
# What `<benchmark>.overall` is called where the tables name an aggregation (docs/benchmarks.md).
OVERALL = {
    "wise": "overall_unweighted",
    "imgedit": "overall_types",
    "gedit": "o",
    "t2i_compbench": "overall_ten",
    "mme": "total",
}


def judged(
    experiment: str, expected: Iterable[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every expectation of an experiment with its range, what was reached, and one of the three verdicts.

    `found` are rows of `reca.report.scores.collect`. ValueError where a score has no such metric.
    """
    verdicts = []
    for entry in expected:
        benchmark, _, name = str(entry["metric"]).partition(".")
        mine = [row for row in found if row["experiment"] == experiment]
        run = Run(entry["model"], entry["arm"], experiment)
        _check_name(mine, run, benchmark, name)
        ours = reproduced(mine, run, Metric(benchmark, name))
        ours = None if ours is None or ours["partial"] or ours["scale"] else ours
        low, high = entry["value"] - entry["tolerance"], entry["value"] + entry["tolerance"]
        verdicts.append(
            {"experiment": experiment, **entry, "range": [low, high], "reproduced": ours,
             "verdict": _verdict(ours, entry)}
        )  # fmt: skip
    return verdicts


def _check_name(rows: Iterable[Mapping[str, Any]], run: Run, benchmark: str, name: str) -> None:
    for row in rows:
        same = (row["model"], row["arm"], row["benchmark"]) == (run.model, run.arm, benchmark)
        if same and name not in row["scores"]["summary"]:
            known = ", ".join(sorted(row["scores"]["summary"]))
            raise ValueError(
                f"{run.experiment}: expect {benchmark}.{name}: {run.model} {run.arm} has no such "
                f"score; there are {known}"
            )


def _verdict(ours: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> str:
    if ours is None:
        return NOT_RUN
    # the allowance is for decimals that binary floats cannot hold (0.62 + 0.02 against 0.64)
    inside = abs(ours["value"] - entry["value"]) <= entry["tolerance"] * (1 + 1e-9) + 1e-12
    return WITHIN if inside else OUTSIDE


def of_cell(
    verdicts: Iterable[Mapping[str, Any]], run: Run, metric: Metric
) -> Mapping[str, Any] | None:
    """The verdict that speaks about a table's cell; None where nobody stated what to expect there."""
    for one in verdicts:
        benchmark, _, name = str(one["metric"]).partition(".")
        names = {name, OVERALL.get(benchmark, name) if name == "overall" else name}
        if run.experiment and one["experiment"] != run.experiment:
            continue
        if (one["model"], one["arm"], benchmark) != (run.model, run.arm, metric.benchmark):
            continue
        if metric.name in names:
            return one
    return None


def counts(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Expectations by verdict."""
    found = {WITHIN: 0, OUTSIDE: 0, NOT_RUN: 0}
    for one in verdicts:
        found[one["verdict"]] += 1
    return found
