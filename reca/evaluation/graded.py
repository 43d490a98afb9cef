"""The result of grading: a summary by metric, the score of every item, and the coverage.

Incomplete coverage is an error unless a partial summary was requested, which is then marked as partial. Intervals are
cluster bootstraps: prompts are resampled within their category, because all official scores are weighted sums of
category means.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from reca.core.rng import numpy_generator

Value = TypeVar("Value")
DRAWS, LEVEL = 2000, 0.95
_NAMED = 5


@dataclass(frozen=True)
class Coverage:
    """How many of the expected scores exist, and why the others do not.

    `missing`: no image or answer; `failed`: no output of the judge or detector; `refused`: the judge declined;
    `unparsable`: its reply contains no score in the allowed range.
    """

    expected: int
    scored: int
    missing: int = 0
    failed: int = 0
    refused: int = 0
    unparsable: int = 0
    without: tuple[str, ...] = ()  # names without a score

    @property
    def complete(self) -> bool:
        """Every expected score exists."""
        return self.scored == self.expected

    def demand(self, benchmark: str, partial: bool) -> None:
        """ValueError, naming what has no score, unless coverage is complete or a partial summary was requested."""
        if self.complete or (partial and self.scored):
            return
        reasons = ("missing", "failed", "refused", "unparsable")
        counts = ", ".join(f"{getattr(self, r)} {r}" for r in reasons if getattr(self, r))
        raise ValueError(
            f"{benchmark}: {self.scored} of {self.expected} scored ({counts or 'nothing found'}), "
            f"for instance {', '.join(self.without[:_NAMED]) or '-'}; complete them, or request a "
            "partial summary"
        )

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON, with the covered share and the name of everything without a score."""
        share = self.scored / self.expected if self.expected else 0.0
        found = {**asdict(self), "without": list(self.without)}
        return {**found, "share": share, "complete": self.complete}


def coverage_of(statuses: Iterable[tuple[str, str]]) -> Coverage:
    """Coverage from (name, status) pairs; status is scored, missing, failed, refused or unparsable."""
    counts: dict[str, int] = defaultdict(int)
    without = []
    for name, status in statuses:
        counts[status] += 1
        if status != "scored":
            without.append(name)
    return Coverage(expected=sum(counts.values()), without=tuple(without), **_named(counts))


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    known = ("scored", "missing", "failed", "refused", "unparsable")
    assert set(counts) <= set(known), f"unknown status among {sorted(counts)}"
    return {name: counts.get(name, 0) for name in known}


@dataclass(frozen=True)
class Graded:
    """The result of one benchmark: `summary` by dotted metric name, with 95 % `intervals` for some metrics.

    `readings`: ids of doubtful replies by kind (see `reca.evaluation.readings`). `by_guidance`: means by metric for
    each guidance level, for benchmarks that are sampled at several.
    """

    summary: dict[str, float | None]
    items: list[dict[str, Any]]
    coverage: Coverage
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    readings: dict[str, list[str]] = field(default_factory=dict)
    by_guidance: dict[str, dict[str, float]] = field(default_factory=dict)


def single_level(levels: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """The metrics of `by_guidance` that were sampled at exactly one guidance level."""
    count = Counter(name for means in levels.values() for name in means)
    return {
        name: value
        for means in levels.values()
        for name, value in means.items()
        if count[name] == 1
    }


def mean(values: Sequence[float]) -> float | None:
    """The mean in float64; None for an empty sequence."""
    return sum(values) / len(values) if values else None


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if any value is None."""
    found = list(values)
    known = [value for value in found if value is not None]
    return mean(known) if len(known) == len(found) else None


def by_category(rows: Iterable[tuple[str, Value]]) -> dict[str, list[Value]]:
    """Values grouped by category, in order of first appearance."""
    found: dict[str, list[Value]] = {}
    for category, value in rows:
        found.setdefault(category, []).append(value)
    return found


def interval(
    rows: Iterable[tuple[str, str, float]],
    weights: Mapping[str, float] | None = None,
    *,
    key: str = "interval",
) -> tuple[float, float] | None:
    """95 % percentile interval of sum_c weight_c mean_c from rows (category c, cluster, value).

    Clusters (prompts) are resampled with replacement within their category; the values of a cluster (its
    images) stay together. Weights default to equal shares for all categories. None without rows.
    """
    clusters: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for category, cluster, value in rows:
        clusters[category][cluster].append(value)
    if not clusters:
        return None
    shares = weights or {category: 1 / len(clusters) for category in clusters}
    generator = numpy_generator("bootstrap", key)
    total = np.zeros(DRAWS)
    for category in sorted(clusters):
        sums = np.array([sum(v) for v in clusters[category].values()])
        sizes = np.array([len(v) for v in clusters[category].values()])
        drawn = generator.multinomial(len(sums), [1 / len(sums)] * len(sums), size=DRAWS)
        total += shares.get(category, 0.0) * (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
