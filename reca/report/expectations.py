"""Results compared with the expectations of an experiment (`expect:`): within tolerance, outside, or not run.

A number is within tolerance if it differs from the expected value by at most the tolerance; its interval is shown but
not used for the verdict. Partial scores, scores of a smaller scale and those of a substitute scorer are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reca.report.paper_map import Metric, Run
from reca.report.scores import reproduced

WITHIN, OUTSIDE, NOT_RUN = "within tolerance", "outside tolerance", "not run"
OTHER_SCORER = "other scorer, not compared"
# The label of scores that the paper's are compared with, where the scorer that is at hand may be a substitute.
OFFICIAL = {"dpg": "dpg(file:mplug)"}
# Names of `<benchmark>.overall` for benchmarks whose tables name an aggregation (docs/benchmarks.md).
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
    """Every expectation of an experiment with its range, the reproduced value, and one of the four verdicts.

    `found` are rows of `reca.report.scores.collect`. ValueError if a score has no such metric.
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
        # limited runs are never compared, and some tasks may be left out
        limited = row["scores"]["partial"] or row["scale"]
        if same and not limited and name not in row["scores"]["summary"]:
            known = ", ".join(sorted(row["scores"]["summary"]))
            raise ValueError(
                f"{run.experiment}: expect {benchmark}.{name}: {run.model} {run.arm} has no such "
                f"score; there are {known}"
            )


def _verdict(ours: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> str:
    if ours is None:
        return NOT_RUN
    benchmark = str(entry["metric"]).partition(".")[0]
    if ours["label"] != OFFICIAL.get(benchmark, ours["label"]):
        return OTHER_SCORER
    # the margin is for decimals that are not exact in binary (0.62 + 0.02 against 0.64)
    inside = abs(ours["value"] - entry["value"]) <= entry["tolerance"] * (1 + 1e-9) + 1e-12
    return WITHIN if inside else OUTSIDE


def of_cell(
    verdicts: Iterable[Mapping[str, Any]], run: Run, metric: Metric
) -> Mapping[str, Any] | None:
    """The verdict on a table cell; None if the experiment states no expectation for it."""
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
    """The number of expectations by verdict."""
    found = {WITHIN: 0, OUTSIDE: 0, NOT_RUN: 0, OTHER_SCORER: 0}
    for one in verdicts:
        found[one["verdict"]] += 1
    return found
