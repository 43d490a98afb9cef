"""Confidence intervals: t intervals over seeds, and paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from reca.core.rng import numpy_generator


def t_interval(values: Sequence[float], level: float = 0.95) -> list[float] | None:
    """Student's t interval of the mean over seeds; None for fewer than two seeds."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return [mean - half, mean + half]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, interval and values, in the order of the seeds."""
    return {
        "mean": float(np.mean(values)),
        "ci95": t_interval(values),
        "per_seed": [float(v) for v in values],
    }


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Difference `first - second` paired by seed, with its t interval; `significant` if the interval excludes 0.

    ValueError if the numbers of seeds differ.
    """
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
    """Difference of means with a bootstrap interval over prompts; rows are seeds, columns are the same prompts.

    It applies to these trained models on other prompts; the t interval over seeds applies to other training runs.
    ValueError if the numbers of prompts differ.
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
