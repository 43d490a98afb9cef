"""Trains one arm of an experiment, from model folder to model folder, on one process or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reca.align import distributed
from reca.align.batches import TaskData
from reca.align.log import LOG, publish
from reca.align.state import freeze, load_trained
from reca.align.trainer import CHECKPOINTS, Summary, align
from reca.align.training_data import check_encoders, feature_data
from reca.config.recipe import Recipe
from reca.models.contract import UnifiedModel
from reca.models.registry import load_model

__all__ = ["Trained", "feature_data", "is_first", "run", "write"]


def is_first() -> bool:
    """Whether this process writes the results: rank 0 of torchrun, or the only process."""
    return distributed.join().first


@dataclass(frozen=True)
class Trained:
    """The result of a run: its summary, what it trained, and the model if one process holds all of it."""

    summary: Summary
    trains: Sequence[str]  # as in the recipe
    model: UnifiedModel | None


def run(
    start: Path,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    work: Path,
    code: str,
    allow: Sequence[str] = (),
) -> Trained:
    """Train the model folder `start` by `recipe`, on every rank; the weights stay in `work` until `write`.

    A run that was stopped is not continued by other `code` (the fingerprint of the stage's), unless `allow` says so
    (`align`). ValueError for a cache of another model.
    """
    model = load_model(start)
    check_encoders(data, model)
    given = {"code": code}
    summary = align(model, data, recipe, seed=seed, work_dir=work, identity=given, allow=allow)
    unsharded = distributed.join().size == 1
    distributed.leave()
    return Trained(summary, recipe.trains, model if unsharded else None)


def write(trained: Trained, start: Path, work: Path, out: Path) -> None:
    """Write the aligned model folder to `out`. After a sharded run no rank holds all weights, so the base is loaded
    again with the weights of the last checkpoint in `work`.
    """
    model = trained.model
    if model is None:
        model = load_model(start)
        step = load_trained(work / CHECKPOINTS, model, freeze(model, trained.trains))
        if step != trained.summary.steps:
            raise ValueError(
                f"{work / CHECKPOINTS}: the checkpoint of step {trained.summary.steps} is damaged, the newest intact "
                f"one is of step {step}; run again: training goes on from there"
            )
    model.save(out)
    publish(work / LOG, trained.summary.steps, out / LOG)
