"""Intervals that say what is true: t intervals over seeds, and paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from reca.core.rng import numpy_generator


def t_interval(values: Sequence[float], level: float = 0.95) -> list[float] | None:
    """Student's interval of the mean over seeds; None with fewer than two seeds, where no interval can be given."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return [mean - half, mean + half]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, interval and the values themselves, in the order of the seeds."""
    return {
        "mean": float(np.mean(values)),
        "ci95": t_interval(values),
        "per_seed": [float(v) for v in values],
    }


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Seed-paired difference `first - second` with its t interval; `significant` when the interval leaves 0 out."""
    if len(first) != len(second):
        raise ValueError(
            f"arms have {len(first)} and {len(second)} seeds; a paired difference needs the same seeds"
        )
    result = summary([a - b for a, b in zip(first, second, strict=True)])
    interval = result["ci95"]
    return {**result, "significant": bool(interval and (interval[0] > 0 or interval[1] < 0))}


def bootstrap_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    rounds: int = 2000,
) -> dict[str, Any]:
    """Difference of means with a bootstrap over prompts: rows are seeds, columns the same prompts in both arms.

    It speaks for these trained models on other prompts; the t interval over seeds speaks for other trainings.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"arms were scored on {a.shape[1]} and {b.shape[1]} prompts; pair the same prompts"
        )
    gaps = a.mean(0) - b.mean(0)
    picks = numpy_generator("bootstrap", seed).integers(gaps.size, size=(rounds, gaps.size))
    low, high = np.quantile(gaps[picks].mean(1), [0.025, 0.975])
    return {"mean": float(gaps.mean()), "ci95": [float(low), float(high)]}
