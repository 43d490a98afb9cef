"""Intervals against values computed by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from reca.report import statistics


def test_t_interval_of_three_seeds() -> None:
    low, high = statistics.t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    assert statistics.summary([0.5]) == {"mean": 0.5, "ci95": None, "per_seed": [0.5]}
    assert statistics.difference([0.9], [0.1])["significant"] is False


def test_difference_is_paired() -> None:
    gap = statistics.difference([0.51, 0.71, 0.91], [0.40, 0.60, 0.80])
    assert gap["mean"] == pytest.approx(0.11)
    assert gap["significant"] is True
    with pytest.raises(ValueError, match="same seeds"):
        statistics.difference([1.0], [1.0, 2.0])


def test_bootstrap_covers_the_true_difference() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        a, b = generator.random((2, 100)) + 0.1, generator.random((2, 100))
        low, high = statistics.bootstrap_difference(a, b, seed=trial, rounds=400)["ci95"]
        covered += low <= 0.1 <= high
    assert covered >= 51
