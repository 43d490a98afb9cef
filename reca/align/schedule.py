"""The learning rate as a pure function of the optimizer step: resuming has nothing to restore."""

from __future__ import annotations

import math

from reca.config.recipe import Recipe


def lr_factor(
    step: int, *, warmup: int, horizon: int, schedule: str = "cosine", floor: float = 0.0
) -> float:
    """Fraction of the peak rate at 0-based step `step`: linear warm-up, then half a cosine to `floor`, or constant.

    With `floor=0` this is the formula of transformers' `get_cosine_schedule_with_warmup`: the first
    warm-up step has rate 0. After the horizon the rate stays at the floor.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def published_rate(iteration: int, *, warmup: int, horizon: int, start: float = 1e-5) -> float:
    """Fraction of the peak rate at a 0-based micro-iteration of Harmon's and OpenUni's code (harmon.md, openuni.md: e).

    The warm-up rises from `start` to the peak at `warmup - 1`; half a cosine to 0 follows.
    """
    if iteration < warmup:
        return start + (1 - start) * iteration / max(1, warmup - 1)
    progress = min(1.0, (iteration - warmup) / max(1, horizon - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based) of `recipe`."""
    horizon = recipe.steps if recipe.horizon is None else recipe.horizon
    if (
        recipe.schedule == "published"
    ):  # the schedule counts micro-batches of all tasks; a step uses the rate of its last one
        iteration = (step + 1) * recipe.accumulation * len(recipe.active()) - 1
        return recipe.lr * published_rate(iteration, warmup=recipe.warmup, horizon=horizon)
    return recipe.lr * lr_factor(
        step,
        warmup=recipe.warmup,
        horizon=horizon,
        schedule=recipe.schedule,
        floor=recipe.floor,
    )
