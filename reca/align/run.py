"""One arm of an experiment, from model folder to model folder."""

from __future__ import annotations

from pathlib import Path

from reca.align.batches import TaskData
from reca.align.recipe import Recipe
from reca.align.texts import feature_data
from reca.align.trainer import Summary, align
from reca.models import load_model

__all__ = ["feature_data", "run"]


def run(
    start: Path, data: TaskData, recipe: Recipe, *, seed: int, work: Path, out: Path
) -> Summary:
    """Train the model folder `start` by `recipe`; writes the aligned model and `log.jsonl` to `out`."""
    model = load_model(start)
    summary = align(model, data, recipe, seed=seed, work_dir=work, log=out / "log.jsonl")
    model.save(out)
    return summary
