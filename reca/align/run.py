"""Trains one arm of an experiment, from model folder to model folder, on one process or many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reca.align import distributed
from reca.align.batches import TaskData
from reca.align.log import LOG, publish
from reca.align.state import load_trained
from reca.align.trainer import CHECKPOINTS, Summary, align
from reca.align.training_data import feature_data
from reca.config.recipe import Recipe
from reca.models.contract import UnifiedModel
from reca.models.registry import load_model

__all__ = ["Trained", "feature_data", "is_first", "run", "write"]


def is_first() -> bool:
    """Whether this process writes the results: rank 0 of torchrun, or the only process."""
    return distributed.join().first


@dataclass(frozen=True)
class Trained:
    """The result of a run: its summary, and the trained model if one process holds all of it."""

    summary: Summary
    model: UnifiedModel | None


def run(start: Path, data: TaskData, recipe: Recipe, *, seed: int, work: Path) -> Trained:
    """Train the model folder `start` by `recipe`, on every rank; the weights stay in `work` until `write`."""
    model = load_model(start)
    summary = align(model, data, recipe, seed=seed, work_dir=work)
    unsharded = distributed.join().size == 1
    distributed.leave()
    return Trained(summary, model if unsharded else None)


def write(trained: Trained, start: Path, work: Path, out: Path) -> None:
    """Write the aligned model folder to `out`. After a sharded run no rank holds all weights, so the base is loaded
    again with the weights of the last checkpoint in `work`.
    """
    model = trained.model
    if model is None:
        model = load_model(start)
        load_trained(work / CHECKPOINTS, model)
    model.save(out)
    publish(work / LOG, trained.summary.steps, out / LOG)
