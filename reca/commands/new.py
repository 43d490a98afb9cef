"""new: an experiment on a user's own images."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from reca.config import draft
from reca.config.schema import DataSource

if TYPE_CHECKING:
    from reca.config.recipe import Recipe
    from reca.config.schema import ModelConfig
    from reca.data.survey import Survey


def new(arguments: Namespace) -> None:
    """Write an experiment after checking its images, and print what the run requires."""
    from reca.config import compose
    from reca.data.survey import open_images, survey

    path, folder = draft.target(arguments.experiment), _images(arguments.images)
    draft.check_model(arguments.model)
    dataset, kind, options = open_images(folder)
    found = survey(dataset, workers=os.cpu_count() or 1)
    example = draft.precedent(arguments.model)
    model = compose.model_config(arguments.model)
    print(f"{folder} ({kind}):")
    resolution = model.network.get("resolution")
    side = resolution if isinstance(resolution, int) else None
    for line in found.lines(side):
        print(f"  {line}")
    if not found.looks:
        raise ValueError(
            f"--images {folder}: none of the images can be read; give another folder (nothing was written)"
        )
    source = DataSource(kind=kind, path=str(folder.resolve()), options=options)  # type: ignore[arg-type]
    benchmark = arguments.benchmark or _benchmark(model)
    _check_captions(arguments, found, draft.recipe_of(arguments.model, example))
    text = draft.text_of(
        arguments.experiment,
        arguments.model,
        source,
        benchmark,
        example,
        found.share_unreadable,
        captioned=found.without_caption == 0,
    )
    draft.write(path, text)
    print(f"{path}: written; valid")
    _plan(arguments.experiment, found)


def _images(given: str) -> Path:
    """The folder or file of images; ValueError for an empty name, and for a folder that holds the working directory."""
    if not given.strip():
        raise ValueError(f"--images {given!r}: names nothing; give a folder of images")
    folder = Path(given)
    if Path().resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--images {given}: holds the working directory, whose pictures are no data; give a folder of images"
        )
    return folder


def _check_captions(arguments: Namespace, found: Survey, recipe: Recipe) -> None:
    """ValueError where a task needs captions that the images do not have: training would stop there, hours later."""
    if "t2i" in recipe.active() and found.without_caption:
        raise ValueError(
            f"--images {arguments.images}: {found.without_caption} of {len(found.looks)} images have no caption, but "
            f"the recipe of {arguments.model} trains t2i; add captions (NAME.txt next to NAME.png), or choose a model "
            "whose recipe has no t2i (bagel_tiny, showo_tiny)"
        )


def _benchmark(model: ModelConfig) -> str:
    """The default benchmark: GenEval for downloaded models, the laptop benchmark for tiny ones."""
    return "geneval" if model.weights.kind == "source" else "laptop"


def _plan(name: str, found: Survey) -> None:
    """Print the output of `reca plan`, and how often training uses each image."""
    from reca.commands.plan import plan
    from reca.config import compose

    experiment = compose.load(name)
    try:
        plan(Namespace(experiment=name, overrides=[], memory=None))
    except ValueError as does_not_fit:
        print(f"  {does_not_fit}")
    readable = round(found.total * (1 - found.share_unreadable))
    for label, model in experiment.models.items():
        recipe, ranks = model.align, max(1, model.resources.gpus * model.resources.nodes)
        for task, each in recipe.active().items():
            samples = recipe.steps * recipe.accumulation * each.batch * ranks
            often = f", each image {samples / max(readable, 1):.1f} times" if task == "reca" else ""
            print(f"  models.{label}: {recipe.steps:,} steps, {samples:,} samples of {task}{often}")
    cost = experiment.cost
    print(f"  cost: {cost.hours:g} h on {cost.hardware} ({cost.basis})")
    print(f"to run it: snakemake --cores all --config experiment={name}")
