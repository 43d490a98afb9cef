"""Scales and marks of the figures."""

from __future__ import annotations

import itertools
import re

import pytest

from reca.report import figures


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.173, 0.191), (3.0, 4200.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = figures.Axis(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1


def test_equal_values_still_have_a_scale() -> None:
    low, high = figures.spread([0.0, 0.0], 0.0)
    assert low < high


def test_interval_bar_lies_around_the_mark() -> None:
    row = {"mean": 0.5, "ci95": [0.4, 0.6], "per_seed": [0.45, 0.55]}
    drawn = figures.intervals({"base": row}, "Outcome", chance=0.1)
    bar = re.search(r'class="bar base" x1="([\d.]+)" x2="([\d.]+)"', drawn)
    mark = re.search(r'class="mark base" cx="([\d.]+)"', drawn)
    assert bar and mark
    assert float(mark[1]) == pytest.approx((float(bar[1]) + float(bar[2])) / 2, abs=0.1)
    assert "Base 0.500, 95 % interval 0.400 to 0.600" in drawn
    assert drawn.count('class="seed base"') == 2


def test_the_chosen_level_has_the_ring() -> None:
    levels = {"reca": {"1.0": [0.2, 0.4], "2.0": [0.5, 0.7]}}
    drawn = figures.sweep(levels, {"reca": 2.0}, "Sweep")
    ring = re.search(r'class="ring reca" cx="([\d.]+)"', drawn)
    marks = re.findall(r'<polygon class="mark reca" points="([\d.]+),', drawn)
    assert ring and len(marks) == 2
    assert float(ring[1]) == pytest.approx(float(marks[1]), abs=0.11)
    assert "best at guidance 2 with 0.600" in drawn


def test_thinning_keeps_the_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(700)]
    thin = figures.thinned(points, 100)
    assert len(thin) == 100
    assert sum(value for _, value in thin) / 100 == pytest.approx(3.0)


def test_equal_values_are_drawn_at_one_place():
    """The mean of equal values is rounded: their interval has a width of 2e-16, which would fill the axis."""
    value, rounded = 0.8722222222222222, 0.872222222222222
    row = {"mean": rounded, "ci95": [rounded, value], "per_seed": [value, value]}
    low, high = figures.spread([*row["ci95"], *row["per_seed"]], 0.0)
    assert low < 0.84 and high > 0.9
    drawn = figures.intervals({"base": row}, "answers")
    bar = re.search(r'class="bar base" x1="([\d.]+)" x2="([\d.]+)"', drawn)
    mark = re.search(r'class="mark base" cx="([\d.]+)"', drawn)
    assert bar and mark
    assert bar[1] == bar[2] == mark[1]
