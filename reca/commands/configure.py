"""compose, check, schema: resolve, validate and describe experiment configurations."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from reca.config import compose as config
from reca.config.scale import changes, label, reason, split
from reca.config.schema import Experiment, ModelConfig


def compose(arguments: Namespace) -> None:
    """Print the resolved experiment or what the overrides change in it, or write it to a file if its text changed."""
    experiment = config.load(arguments.experiment, arguments.overrides)
    if arguments.diff:
        for line in _differences(config.load(split(arguments.experiment)[0]), experiment):
            print(line)
        return
    if arguments.out is None:
        sys.stdout.write(config.resolved_text(experiment))
    else:
        written = config.write_resolved(experiment, arguments.out)
        print(f"{arguments.out}: {'written' if written else 'unchanged'}")


def _differences(before: Experiment, after: Experiment) -> list[str]:
    """One line per field: key path, value before and after, and why a scale may change it."""
    lines = []
    for path, *values in changes(config.resolved(before), config.resolved(after)):
        old, new = ("(default)" if value is ... else json.dumps(value) for value in values)
        why = reason(path) if after.scale else None
        lines.append(f"{path}: {old} -> {new}" + (f"  # {why}" if why else ""))
    return lines


def schema(arguments: Namespace) -> None:
    """Print the JSON schema, or write it to the file that Snakemake reads."""
    from reca.core.artifacts import write_atomic

    if not arguments.write:
        sys.stdout.write(config.schema_text())
        return
    write_atomic(config.SCHEMA_PATH, config.schema_text())
    print(f"{config.SCHEMA_PATH}: written")


def check(arguments: Namespace) -> None:
    """Validate everything that can be checked before a run, and print a summary of the experiment."""
    experiment = config.load(arguments.experiment, arguments.overrides)
    _data(experiment)
    for line in (*_summary(experiment), *_models(experiment), *_sources(experiment)):
        print(line)


def _summary(experiment: Experiment) -> list[str]:
    runs = 1 + sum(len(experiment.seeds) for arm in experiment.arms if arm != "base")
    own = [f"{name} {model.seeds}" for name, model in experiment.models.items() if model.seeds]
    cost = experiment.cost
    return [
        f"{label(experiment)}: {experiment.title}",
        f"  {len(experiment.models)} models, arms {', '.join(experiment.arms)}, "
        f"seeds {experiment.seeds}, {runs} checkpoints per model"
        + (f"; other seeds: {', '.join(own)}" if own else ""),
        f"  cost: {cost.hours:g} h on {cost.hardware} ({cost.basis})",
    ]


def _models(experiment: Experiment) -> list[str]:
    """One line per model: its parameter count, or that its family cannot run; ValueError for an invalid network."""
    from reca.models.registry import is_runnable

    lines = []
    for name, model in experiment.models.items():
        if not is_runnable(model.family):
            why = f"configuration only, family {model.family} cannot run yet"
            lines.append(f"  models.{name}: {why}")
            continue
        try:
            size = _parameters(model, _given(model, experiment))
        except (TypeError, ValueError) as error:
            raise ValueError(f"experiment {experiment.name!r}: models.{name}: {error}") from error
        lines.append(f"  models.{name}: network fits family {model.family}, {size:,} parameters")
    return lines


def _parameters(model: ModelConfig, given: Sequence[Path]) -> int:
    """The number of parameters of a network, built without memory; this also runs the family's strict validation.

    It must be the network of the weights in the folders `given`.
    """
    import torch

    from reca.models.contract import Sampling
    from reca.models.import_base import DESCRIPTION, check_network
    from reca.models.registry import build_model

    with torch.device("meta"):
        built = build_model(model.family, model.network)
    for folder in given:
        if (folder / DESCRIPTION).is_file():
            check_network(folder, model.network, built)
    sampler = model.sampler
    for level in sampler.guidance:
        built.check_sampling(Sampling(level, sampler.steps, sampler.temperature, sampler.options))
    return sum(parameter.numel() for parameter in built.parameters())


def _data(experiment: Experiment) -> None:
    """ValueError, naming the key, for unknown reader options and for weights that are missing."""
    from reca.config.validate import without_weights
    from reca.data.formats import check_options, jpeg_side, max_unreadable

    for role, source in experiment.data.items():
        try:
            check_options(source.kind, source.options)
            max_unreadable(source.options)
            jpeg_side(source.options)
        except ValueError as error:
            raise ValueError(f"data.{role}.options: {error}") from error
    for name, model in experiment.models.items():
        for path in _given(model, experiment):
            if not path.is_dir():
                raise ValueError(without_weights(name, str(path)))


def _given(model: ModelConfig, experiment: Experiment) -> list[Path]:
    """The folders of weights that a model of an experiment starts from: one, or one per seed."""
    if model.weights.kind == "source" or experiment.pretrain is not None:
        return []
    paths = (model.weights.of_seed(seed).path for seed in model.seeds or experiment.seeds)
    return [Path(path) for path in dict.fromkeys(paths) if path]


def _sources(experiment: Experiment) -> list[str]:
    from reca.config.validate import needed_sources
    from reca.sources.fetch import list_sources

    used = set(dict(needed_sources(experiment)).values())
    missing = sorted(
        s.source.name for s in list_sources() if s.source.name in used and not s.pinned
    )
    if not missing:
        return [f"  {len(used)} sources, all pinned"]
    return [f"  {len(used)} sources, not pinned yet: {', '.join(missing)} (`reca pin NAME`)"]
