"""Whether an arm counts as trained: an outcome of an arm that is not says nothing about its objective.

Its generation loss must be flat. RecA must also reconstruct clearly more than its base: else nothing can transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The conditions of one and the same generation loss; understanding tasks keep what is known.
DRAWING = ("reca", "t2i")
PART, FALL = 0.2, 0.03  # of the steps; by how much the last part may improve on the one before it
RECONSTRUCTING = ("reca", "reca_only")

Logs = Mapping[str, Sequence[Mapping[str, Any]]]  # run -> rows of log.jsonl


def trained_arms(logs: Logs, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For every trained arm: `trained`, `flat`, `fall` of the loss, and `reconstructs` (None where it need not).

    `rows` are the model's outcomes. With one seed there is no interval over seeds, so the one over items decides.
    """
    arms = dict.fromkeys(run.rsplit("-", 1)[0] for run in logs)
    found = {}
    for arm in arms:
        falls = [fall(lines) for run, lines in logs.items() if run.rsplit("-", 1)[0] == arm]
        known = [value for value in falls if value is not None]
        mean = float(np.mean(known)) if known else None
        flat = mean is not None and mean <= FALL
        again = reconstructs(arm, rows)
        found[arm] = {
            "trained": flat and again is not False,
            "flat": flat,
            "fall": mean,
            "reconstructs": again,
        }
    return found


def fall(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """By which share the generation loss fell from the last but one fifth of the steps to the last; None if unknown."""
    losses = [loss for row in lines if (loss := _drawing(row)) is not None]
    size = int(PART * len(losses))
    if size == 0:
        return None
    before, last = (float(np.mean(part)) for part in (losses[-2 * size : -size], losses[-size:]))
    return (before - last) / last if last > 0 else None


def _drawing(row: Mapping[str, Any]) -> float | None:
    values = [row["loss"][task] for task in DRAWING if row["loss"].get(task) is not None]
    return float(np.mean(values)) if values else None


def reconstructs(arm: str, rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether RecA reconstructs more objects than its base, by an interval; None for another arm or without images."""
    row = next((row for row in rows if row["name"] == "reconstruction"), None)
    gap = (row or {}).get("differences", {}).get(f"{arm} - base")
    if arm not in RECONSTRUCTING or gap is None:
        return None
    interval = gap["ci95"] or gap.get("over_items", {}).get("ci95")
    return None if interval is None else bool(interval[0] > 0)


def why_not(arm: Mapping[str, Any]) -> str:
    """Why an arm does not count as trained."""
    reasons = []
    if not arm["flat"]:
        falls = (
            "is unknown" if arm["fall"] is None else f"still fell by {arm['fall']:.1%} at the end"
        )
        reasons.append(f"its loss {falls}")
    if arm["reconstructs"] is False:
        reasons.append("it does not reconstruct clearly more than the base")
    return " and ".join(reasons)
