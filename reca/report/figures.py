"""Small inline SVG figures, without scripts, fonts or network; colours come from the page's style sheet.

Arms differ in colour, line dashes and marker shape, so that no figure depends on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

# Close to the width of a phone screen, so that labels keep their size there.
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 42
TICK = 28  # between the middles of two labels of five characters
NAMES = {
    "base": "Base",
    "sft": "Plain training",
    "reca": "RecA",
    "reca_only": "RecA only",
    "shuffled": "Shuffled",
    "random_encoder": "Random basis",
    "template_only": "Template only",
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear scale from data to pixels with round ticks."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About `wanted` round values within the scale."""
        raw = (self.high - self.low) / wanted
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def spread(values: Sequence[float], floor: float | None = None) -> tuple[float, float]:
    """A range slightly wider than the values; its lower end is at least `floor`."""
    low, high = min(values), max(values)
    # Equal values whose interval is rounded to the next number would fill the whole axis.
    equal = math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12)
    pad = (0.05 * abs(high) or 0.05) if equal else 0.06 * (high - low)
    low = low - pad if floor is None else max(floor, low - pad)
    return low, high + pad


# ---- figures -------------------------------------------------------------------------------------
def intervals(
    rows: Mapping[str, Mapping[str, Any]], label: str, chance: float | None = None
) -> str:
    """One row per arm with a mark for the mean, a bar for the interval and a tick per seed; a dashed line for chance.

    `rows[arm]` has `mean`, `ci95` (None: no bar) and `per_seed`.
    """
    shown = [value for row in rows.values() for value in [*(row["ci95"] or ()), *row["per_seed"]]]
    x = Axis(*spread(shown + ([] if chance is None else [chance]), 0.0), 106, WIDTH - RIGHT)
    bottom = 40 * len(rows) + 6
    parts = []
    for tick in x.ticks(4):
        parts.append(_rule("grid", x(tick), x(tick), 4, bottom))
        parts.append(_text("tick", x(tick), bottom + 17, f"{tick:g}", "middle"))
    if chance is not None:
        parts.append(_rule("chance", x(chance), x(chance), 4, bottom))
        parts.append(_text("tick", x(chance), bottom + 33, f"chance {chance:.3f}", "middle"))
    for index, (arm, row) in enumerate(rows.items()):
        parts.extend(_interval(arm, row, x, 24 + 40 * index))
    return _svg(parts, f"{label}. {_spoken(rows)}{_spoken_chance(chance)}", bottom + 40)


def sweep(
    levels: Mapping[str, Mapping[str, Sequence[float]]], chosen: Mapping[str, float], label: str
) -> str:
    """Mean score by guidance for each arm, with thin lines per seed and a ring at the chosen level.

    `levels[arm][guidance]` are the values by seed.
    """
    every = [value for arm in levels.values() for values in arm.values() for value in values]
    positions = sorted({float(level) for arm in levels.values() for level in arm})
    x = Axis(*spread(positions), LEFT, WIDTH - RIGHT)
    y = Axis(*spread(every, 0.0), HEIGHT - BOTTOM, TOP)
    parts, spoken = _frame(x, y, "guidance", positions), []
    for arm, by_level in levels.items():
        rows = sorted((float(level), values) for level, values in by_level.items())
        means = [(level, sum(values) / len(values)) for level, values in rows]
        if len(rows[0][1]) > 1:
            for seed in range(len(rows[0][1])):
                line = [(x(level), y(values[seed])) for level, values in rows]
                parts.append(_line(line, f"thin {arm}"))
        parts.append(_line([(x(level), y(mean)) for level, mean in means], arm))
        for level, mean in means:
            parts.append(
                _mark(x(level), y(mean), arm, f"{NAMES[arm]}, guidance {level:g}: {mean:.3f}")
            )
            if level == chosen[arm]:
                parts.append(
                    f'<circle class="ring {arm}" cx="{x(level):.1f}" cy="{y(mean):.1f}" r="9"/>'
                )
                spoken.append(f"{NAMES[arm]} is best at guidance {level:g} with {mean:.3f}")
    return _svg(parts, f"{label}. {'; '.join(spoken)}.")


def bands(series: Mapping[str, Mapping[float, Mapping[str, Any]]], axis: str, label: str) -> str:
    """A score along a number, one line per arm with the mean and the interval over seeds at every point.

    `series[arm][x]` has `mean` and `ci95` (None: no bar); `axis` names the number.
    """
    points = [(at, row) for line in series.values() for at, row in line.items()]
    shown = [value for _, row in points for value in (row["mean"], *(row["ci95"] or ()))]
    positions = sorted({at for at, _ in points})
    x = Axis(*spread(positions), LEFT, WIDTH - RIGHT)
    y = Axis(*spread([max(value, 0.0) for value in shown], 0.0), HEIGHT - BOTTOM, TOP)
    legible = all(x(after) - x(at) >= TICK for at, after in pairwise(positions))
    legible = legible and all(len(f"{at:g}") <= 5 for at in positions)
    ticks = positions if legible and len(positions) <= 6 else x.ticks()
    parts, spoken = _frame(x, y, axis, ticks), []
    for arm, line in series.items():
        means = [(at, line[at]["mean"]) for at in sorted(line)]
        parts.append(_line([(x(at), y(mean)) for at, mean in means], arm))
        for at, mean in means:
            if line[at]["ci95"]:
                low, high = (y(max(value, y.low)) for value in line[at]["ci95"])
                parts.append(_rule(f"bar {arm}", x(at), x(at), low, high))
            title = f"{NAMES.get(arm, arm)}, {axis} {at:g}: {mean:.3f}"
            parts.append(_mark(x(at), y(mean), arm, title))
        ends = " to ".join(f"{mean:.3f} at {at:g}" for at, mean in (means[0], means[-1]))
        spoken.append(f"{NAMES.get(arm, arm)} from {ends}")
    return _svg(parts, f"{label}, by {axis}. {'; '.join(spoken)}.")


def curves(series: Mapping[str, Mapping[str, Sequence[Point]]], label: str) -> str:
    """Loss by optimizer step: one line per run in the style of its arm. `series[arm][run]` has (step, loss) points."""
    points = [point for runs in series.values() for line in runs.values() for point in line]
    x = Axis(0, max(step for step, _ in points), LEFT, WIDTH - RIGHT)
    y = Axis(*spread([value for _, value in points], 0.0), HEIGHT - BOTTOM, TOP)
    parts, spoken = _frame(x, y, "optimizer step", x.ticks()), []
    for arm, runs in series.items():
        for run, line in runs.items():
            parts.append(_line([(x(step), y(value)) for step, value in line], f"run {arm}", run))
        ends = [sum(line[i][1] for line in runs.values()) / len(runs) for i in (0, -1)]
        spoken.append(f"{NAMES[arm]} from {ends[0]:.2f} to {ends[1]:.2f}")
    return _svg(parts, f"{label}: {'; '.join(spoken)}.")


def key(arm: str) -> str:
    """The marker and line of an arm, for legends; hidden from screen readers because the name follows as text."""
    inner = _line([(1, 8), (33, 8)], arm) + _mark(17, 8, arm, "")
    return f'<svg class="key" viewBox="0 0 34 16" width="34" height="16" aria-hidden="true">{inner}</svg>'


def thinned(rows: Sequence[Point], most: int = 60) -> list[Point]:
    """At most `most` points, each the mean of consecutive ones, to make a noisy curve readable."""
    size = max(1, math.ceil(len(rows) / most))
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        (sum(step for step, _ in chunk) / len(chunk), sum(value for _, value in chunk) / len(chunk))
        for chunk in chunks
    ]


# ---- words for those who do not see them ---------------------------------------------------------
def _spoken(rows: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for arm, row in rows.items():
        bar = row["ci95"]
        within = f", 95 % interval {bar[0]:.3f} to {bar[1]:.3f}" if bar else ", one seed"
        parts.append(f"{NAMES[arm]} {row['mean']:.3f}{within}")
    return "; ".join(parts) + "."


def _spoken_chance(chance: float | None) -> str:
    return "" if chance is None else f" Chance is {chance:.3f}."


# ---- pieces --------------------------------------------------------------------------------------
def _svg(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    inside = "".join(parts)
    box = f'viewBox="0 0 {WIDTH} {height}"'
    return f'<svg class="plot" {box} role="img" aria-label="{escape(label)}">{inside}</svg>'


def _frame(x: Axis, y: Axis, x_title: str, x_ticks: Sequence[float]) -> list[str]:
    parts = []
    for tick in y.ticks():
        parts.append(_rule("grid", x.start, x.stop, y(tick), y(tick)))
        parts.append(_text("tick", x.start - 7, y(tick) + 4, f"{tick:g}", "end"))
    for tick in x_ticks:
        parts.append(_text("tick", x(tick), HEIGHT - 23, f"{tick:g}", "middle"))
    parts.append(_text("axis", (x.start + x.stop) / 2, HEIGHT - 5, x_title, "middle"))
    return parts


def _interval(arm: str, row: Mapping[str, Any], x: Axis, at: float) -> list[str]:
    parts = [_text(f"name {arm}", 0, at + 5, NAMES[arm], "start")]
    if row["ci95"]:
        low, high = (x(max(value, x.low)) for value in row["ci95"])
        parts.append(_rule(f"bar {arm}", low, high, at, at))
    for value in row["per_seed"]:
        parts.append(_rule(f"seed {arm}", x(value), x(value), at + 9, at + 15))
    parts.append(_mark(x(row["mean"]), at, arm, f"{NAMES[arm]}: {row['mean']:.3f}", 6))
    return parts


def _rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, words: str, anchor: str) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {at}>{escape(words)}</text>'


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def _line(points: Sequence[Point], kind: str, title: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="line {kind}" points="{path}">{_title(title)}</polyline>'


def _mark(x: float, y: float, arm: str, title: str, r: float = 4.5) -> str:
    """The marker of an arm: a circle, square, diamond, triangle or bar."""
    corners = {
        "sft": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "reca": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "reca_only": [(-1.3, -0.7), (1.3, -0.7), (1.3, 0.7), (-1.3, 0.7)],
        "shuffled": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
        "random_encoder": [(0, 1.15), (1.1, -0.85), (-1.1, -0.85)],
        "template_only": [(-0.7, -1.3), (0.7, -1.3), (0.7, 1.3), (-0.7, 1.3)],
    }
    if arm not in corners:
        at = f'cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"'
        return f'<circle class="mark {arm}" {at}>{_title(title)}</circle>'
    path = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners[arm])
    return f'<polygon class="mark {arm}" points="{path}">{_title(title)}</polygon>'
