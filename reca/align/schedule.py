"""Learning rate by optimiser step: a pure function, so that resume has nothing to restore."""

from __future__ import annotations

import math

from reca.align.recipe import Recipe


def lr_factor(
    step: int, *, warmup: int, horizon: int, schedule: str = "cosine", floor: float = 0.0
) -> float:
    """Share of the peak rate at 0-based step `step`: linear warm-up, then half a cosine to `floor`, or constant.

    With `floor=0` this is the formula of transformers' `get_cosine_schedule_with_warmup`: the first
    warm-up step has rate 0. Past the horizon the rate stays at the floor.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate that optimiser step `step` (0-based) of `recipe` uses."""
    horizon = recipe.steps if recipe.horizon is None else recipe.horizon
    return recipe.lr * lr_factor(
        step,
        warmup=recipe.warmup,
        horizon=horizon,
        schedule=recipe.schedule,
        floor=recipe.floor,
    )
