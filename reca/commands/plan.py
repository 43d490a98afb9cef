"""plan: the memory that a run requires, before it starts."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from reca.config import compose
from reca.config.recipe import Recipe
from reca.config.scale import label
from reca.config.schema import ModelConfig
from reca.config.validate import cache_visits, cached_uses
from reca.data.order import Visits

_log = logging.getLogger(__name__)


def plan(arguments: Namespace) -> None:
    """Print each model's memory by part and the device's; ValueError (after printing) if a model does not fit."""
    from reca.align.memory import (
        GIB,
        cached_bytes,
        described,
        device_bytes,
        fits,
        footprint,
        meta_model,
        remedy,
    )
    from reca.models.registry import is_runnable

    if arguments.memory is not None and not 0 < arguments.memory < math.inf:
        raise ValueError(f"--memory {arguments.memory:g}: must be a number of GiB above 0")
    experiment = compose.load(arguments.experiment, arguments.overrides)
    print(f"{label(experiment)}: {experiment.title}")
    refused = []
    for name, model in experiment.models.items():
        if not is_runnable(model.family):
            print(f"  models.{name}: configuration only, family {model.family} cannot run yet")
            continue
        gpus, half = _devices(model)
        memory, device = device_bytes(gpus)
        if arguments.memory is not None:
            memory, device = arguments.memory * GIB, f"a device of {arguments.memory:g} GiB"
        empty = meta_model(model.family, model.network)
        found = footprint(empty, model.align, gpus, half)
        print("\n".join(described(name, found, memory, device)))
        for use in cached_uses(experiment, name):
            size = cached_bytes(empty, use, model.cache_dtype)
            print(_cache_line(use, size, cache_visits(experiment, name, use), model))
        if not fits(found, memory):
            refused.append(f"models.{name}: {remedy(empty, model.align, memory, half)}")
    if refused:
        raise ValueError(f"{experiment.name} does not fit; {'; '.join(refused)}")


def _cache_line(use: str, size: int, visits: Visits | None, model: ModelConfig) -> str:
    """Size on disk of one feature cache, as far as it is known before the images are here."""
    each = f"    feature cache '{use}': {size / 1e6:.3g} MB per image in {model.cache_dtype}"
    if visits is None:
        return f"{each}, all images of the data set"
    images = visits.samples * len(visits.seeds)
    return f"{each}, at most {images:,} images: {images * size / 1e9:,.3g} GB"


def _devices(model: ModelConfig) -> tuple[int, bool]:
    gpus = model.resources.gpus * model.resources.nodes
    return gpus, _is_half(model.align, gpus)


def _is_half(recipe: Recipe, gpus: int) -> bool:
    return recipe.precision == "bf16" or (recipe.precision == "auto" and gpus > 0)


def before_a_run(family: str, network: Mapping[str, Any], recipe: Recipe, ranks: int) -> None:
    """Log the memory footprint of an alignment; ValueError if it cannot fit on this machine's GPU.

    On the CPU this is only a warning, because swap and shared pages make the available memory uncertain.
    """
    import torch

    from reca.align.memory import described, device_bytes, fits, footprint, meta_model, remedy

    gpus = ranks if torch.cuda.is_available() else 0
    memory, device = device_bytes(gpus)
    half = _is_half(recipe, gpus)
    empty = meta_model(family, network)
    found = footprint(empty, recipe, gpus, half)
    for line in described(family, found, memory, device):
        _log.info("%s", line)
    if not fits(found, memory):
        said = f"this run does not fit; {remedy(empty, recipe, memory, half)}"
        if gpus:
            raise ValueError(said)
        _log.warning("%s", said)
