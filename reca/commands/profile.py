"""profile: where the time of an experiment's training steps goes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reca.commands.inputs import pairs
from reca.commands.train import sources_of
from reca.config import compose
from reca.config.recipe import Recipe, TaskRecipe, for_arm
from reca.config.scale import label
from reca.config.schema import Experiment, ModelConfig
from reca.core.ownership import check_file

if TYPE_CHECKING:
    from reca.align.batches import TaskData
    from reca.conformance.subject import Subject
    from reca.models.contract import Features, UnifiedModel

TINY_BATCH = 2


def profile(arguments: Namespace) -> None:
    """Print the shares of a step and its longest operations; write the trace file."""
    if arguments.steps < 1:
        raise ValueError(f"--steps {arguments.steps}: must be 1 or more")
    experiment = compose.load(arguments.experiment, arguments.overrides)
    name, config = _model(experiment, arguments.model)
    arm = next(arm for arm in experiment.arms if arm != "base")
    recipe = for_arm(config.align, arm)
    trace = Path(arguments.out or f"profile-{label(experiment)}-{name}.json")
    check_file("--out", trace, _is_trace)
    model, data, recipe, source = _inputs(arguments, experiment, config, recipe)

    from reca.align.profile import WARM_UP, described, profile_steps

    found = profile_steps(
        model,
        data,
        recipe,
        seed=(config.seeds or experiment.seeds)[0],
        steps=arguments.steps,
        trace=trace,
        device=arguments.device,
    )
    print(f"{label(experiment)}, models.{name}, arm {arm}: {source}")
    print(f"{found.steps} steps on {found.device} after {WARM_UP} that are not counted")
    print("\n".join(["", *described(found), "", f"trace: {trace} (chrome://tracing, Perfetto)"]))


def _model(experiment: Experiment, named: str | None) -> tuple[str, ModelConfig]:
    """The model of this name, or the first; ValueError if the experiment has none, or trains nothing."""
    if all(arm == "base" for arm in experiment.arms) or not experiment.models:
        raise ValueError(f"{experiment.name} trains no model; give an experiment that does")
    name = named or next(iter(experiment.models))
    if name not in experiment.models:
        raise ValueError(
            f"--model {name}: {experiment.name} has no such model; choose one of: "
            f"{', '.join(experiment.models)}"
        )
    return name, experiment.models[name]


def _inputs(
    arguments: Namespace, experiment: Experiment, config: ModelConfig, recipe: Recipe
) -> tuple[UnifiedModel, TaskData, Recipe, str]:
    """The model and data of the arguments, else the tiny ones of the family; what they are, in words."""
    folders, caches = pairs("--data", arguments.data), pairs("--cache", arguments.cache)
    if arguments.base is not None:
        from reca.align.training_data import check_encoders, feature_data
        from reca.models.registry import load_model

        entries = {role: config.data.get(role, role) for role in map(str, recipe.roles())}
        sources = sources_of({r: asdict(experiment.data[entry]) for r, entry in entries.items()})
        seed = (config.seeds or experiment.seeds)[0]
        data = feature_data(recipe, sources, folders, caches, seed=seed, ranks=1)
        model = load_model(Path(arguments.base))
        check_encoders(data, model)
        return model, data, recipe, f"model folder {arguments.base}"
    if folders or caches:
        raise ValueError(
            "--data and --cache need --base; give all three as to `reca align`, or none"
        )
    from reca.conformance.resolve import subject_of

    try:
        subject = subject_of(config.family)
    except ValueError as error:
        raise ValueError(
            f"family {config.family} has no tiny model here; give --base, --cache and --data of a run ({error})"
        ) from error
    tasks = {
        task: TaskRecipe(term.weight, min(term.batch, TINY_BATCH))
        for task, term in recipe.tasks.items()
    }
    source = (
        f"the recipe with at most {TINY_BATCH} samples per micro-batch, on noise and {subject.source}; "
        "--base, --data and --cache give the model and data of a run"
    )
    small = replace(recipe, tasks=tasks, trains=[])
    return subject.model, tiny_data(subject, small), small, source


class _Rows:
    """Features in memory."""

    def __init__(self, features: Features) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def rows(self, indices: Sequence[int]) -> Features:
        """Features of the given rows."""
        return {name: rows[list(indices)] for name, rows in self.features.items()}


def tiny_data(subject: Subject, recipe: Recipe) -> TaskData:
    """The subject's images and texts as data of every task of the recipe."""
    from reca.align.batches import EditRows, FeatureData

    talks = [[conversation] for conversation in subject.conversations()]
    tasks = recipe.active()
    rows = len(subject.images)
    return FeatureData(
        draw=_Rows(subject.features["draw"]),
        read=_Rows(subject.features["read"]),
        prompts=list(subject.texts),
        draw_captions=list(subject.texts),
        read_conversations=talks,
        text_conversations=talks,
        edit=_Rows(subject.features["edit"]) if "edit" in tasks else None,
        edits=[EditRows(i, (i + 1) % rows, subject.texts[i]) for i in range(rows)]
        if "edit" in tasks
        else (),
    )


def _is_trace(path: Path) -> bool:
    """Whether a file begins like a trace of torch's profiler; others are not overwritten."""
    with open(path, "rb") as file:
        return b'"schemaVersion"' in file.read(200)
