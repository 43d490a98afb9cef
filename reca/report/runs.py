"""The runs that belong to an experiment; others on disk are of an earlier recipe and are never counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Runs = Mapping[str, Collection[str]]  # model -> runs, such as `reca-0`


def runs_of(experiment: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The runs of a resolved experiment by model: every seed of each of its arms."""
    found = {}
    for name, model in experiment["models"].items():
        arms = set(experiment["arms"]) & set(model.get("arms") or experiment["arms"])
        seeds = model.get("seeds") or experiment["seeds"]
        found[name] = frozenset(f"{arm}-{seed}" for arm in arms for seed in seeds)
    return found


def is_expected(runs: Runs | None, model: str, run: str = "") -> bool:
    """Whether a run belongs to the experiment; any does if `runs` is None or has no such model."""
    known = (runs or {}).get(model)
    return known is None or run in known
