"""One arm of an experiment, from model folder to model folder, on one process or many."""

from __future__ import annotations

from pathlib import Path

from reca.align import distributed
from reca.align.batches import TaskData
from reca.align.log import LOG, publish
from reca.align.state import load_trained
from reca.align.trainer import CHECKPOINTS, Summary, align
from reca.align.training_data import feature_data
from reca.config.recipe import Recipe
from reca.models.registry import load_model

__all__ = ["feature_data", "is_first", "run", "write"]


def is_first() -> bool:
    """Whether this process writes the results: rank 0 of torchrun, or the only one."""
    return distributed.join().first


def run(start: Path, data: TaskData, recipe: Recipe, *, seed: int, work: Path) -> Summary:
    """Train the model folder `start` by `recipe`; the trained weights stay in `work` until `write`.
    Every rank calls this.
    """
    summary = align(load_model(start), data, recipe, seed=seed, work_dir=work)
    distributed.leave()
    return summary


def write(start: Path, work: Path, out: Path) -> None:
    """Write the aligned model folder to `out` from the last checkpoint in `work`, which a sharded run left whole."""
    model = load_model(start)
    step = load_trained(work / CHECKPOINTS, model)
    model.save(out)
    publish(work / LOG, step, out / LOG)
