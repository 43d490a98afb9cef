"""A new experiment from a model and somebody's images, as a commented YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reca.config import compose
from reca.config.recipe import ROLE_OF, Recipe
from reca.config.schema import Cost, DataSource, Experiment, ModelConfig
from reca.config.validate import TOYWORLD, check_name
from reca.core.atomic import write_atomic
from reca.core.documents import read_text, yaml_value
from reca.core.structure import suggestion
from reca.data.dataset import MAX_UNREADABLE

RECONSTRUCT = "reconstruct"
WRITTEN = "# Written by `reca new`"  # begins a draft's second line
# What tasks read besides images, where no experiment trains the model yet: files of config/data/.
_LAPTOP_DATA = {"answer": "laptop_world", "text": "laptop_text", "edit": "laptop_edits"}
_DATA = {"answer": "llava_665k"}


@dataclass(frozen=True)
class Precedent:
    """How an experiment of this repository trains a model: its recipe's file, its other data, its cost."""

    experiment: str
    align: str | None
    model: ModelConfig
    data: Mapping[str, DataSource]
    cost: Cost


def precedent(model: str) -> Precedent | None:
    """The experiment that trains this model by RecA from the same weights: one of the paper if there is one, else None.

    Drafts of `reca new` and files that are no YAML are no precedents.
    """
    folder = compose.default_config_dir()
    found = []
    for name in compose.names(folder):
        path = folder / "experiment" / f"{name}.yaml"
        try:
            text = read_text(path)
            if WRITTEN in text or model not in text:  # a draft, or of other models: not parsed
                continue
            plain = yaml_value(text, path)
        except ValueError:
            continue
        entries = {
            key.removeprefix("/"): value
            for entry in (plain.get("defaults") or [] if isinstance(plain, dict) else [])
            if isinstance(entry, dict)
            for key, value in entry.items()
        }
        slot = next((k for k, v in entries.items() if k.startswith("model@") and v == model), None)
        if slot is not None and "pretrain" not in name:
            own = slot.removeprefix("model@models.")
            unlike = (name != f"paper_{model}", not name.startswith("paper"), len(entries))
            found.append((unlike, name, own, entries))
    weights = compose.model_config(model).weights
    for _, name, own, entries in sorted(found, key=lambda one: one[:2]):
        try:
            experiment = compose.load(name)
        except ValueError:  # somebody's own, unfinished
            continue
        if "reca" in experiment.arms and experiment.models[own].weights == weights:
            return _precedent(name, experiment, own, entries)
    return None


def _precedent(
    name: str, experiment: Experiment, own: str, entries: Mapping[str, str]
) -> Precedent:
    described = experiment.models[own]
    data = {
        str(role): experiment.data[described.data.get(role, role)]
        for role in described.align.roles()
        if role != RECONSTRUCT
    }
    align = entries.get(f"align@models.{own}.align")
    return Precedent(name, align, described, data, experiment.cost)


def model_names() -> list[str]:
    """All model configurations, of this repository and of packages that bring families."""
    return sorted(
        path.stem for folder in compose.config_folders() for path in folder.glob("model/*.yaml")
    )


def target(name: str) -> Path:
    """The file of a new experiment; ValueError where the name is no name, or taken."""
    check_name("EXPERIMENT", name)
    path = compose.default_config_dir() / "experiment" / f"{name}.yaml"
    taken = {n for folder in compose.config_folders() for n in compose.names(folder)}
    if path.exists() or name in taken:
        raise ValueError(
            f"experiment {name!r} exists ({path}); it is not replaced: choose another name"
        )
    return path


def text_of(
    name: str,
    model: str,
    source: DataSource,
    benchmark: str,
    example: Precedent | None,
    unreadable: float,
    *,
    captioned: bool = True,
) -> str:
    """The YAML of an experiment that trains `model` on `source`; `unreadable` is the share that cannot be read.

    `captioned`: every image has a caption, so the arm `sft` can run.
    """
    slot = f"models.{model}"
    described = compose.model_config(model)
    defaults = [f"  - /model@{slot}: {model}"]
    if example is not None and example.align is not None:
        recipe = f"  # as experiment {example.experiment} has it; change fields below {slot}.align"
        defaults.append(f"  - /align@{slot}.align: {example.align}{recipe}")
    if example is None:
        defaults += _defaults_of_tasks(described.align, benchmark)
    defaults.append(
        f"  - /benchmark@benchmarks.{benchmark}: {benchmark}  # others: config/benchmark/"
    )
    others = example.data if example is not None else {}
    title = f"RecA of {model} on {Path(source.path or '').name}"
    sft = "sft (text-to-image on captions, equal compute), " if captioned else ""
    no_sft = "" if captioned else "; not sft: it needs a caption of every image"
    return "\n".join(
        [
            "# @package _global_",
            f"{WRITTEN}: RecA of {model} on images of your own. Check it with `reca check {name}`.",
            "defaults:",
            *defaults,
            "  - _self_",
            "",
            f"name: {name}  # must be the name of this file; results go to results/{name}",
            f"title: {_flow(title)}",
            f"question: Does RecA on these images raise the scores of {model}?",
            "seeds: [0]  # one run per seed and arm",
            f"arms: [base, reca]  # also: {sft}shuffled (control){no_sft}",
            "data:",
            f"  {RECONSTRUCT}:  # images that RecA reconstructs; captions are not used by it",
            *_described(source),
            *_threshold(unreadable, source.options),
            *(line for role, one in others.items() for line in _other(role, one, example)),
            *(_how_to_read(described, model, benchmark) if example is None else ()),
            _cost(described, example),
            "",
        ]
    )


def recipe_of(model: str, example: Precedent | None) -> Recipe:
    """The recipe that a new experiment of this model begins with."""
    return example.model.align if example is not None else compose.model_config(model).align


def _defaults_of_tasks(recipe: Recipe, benchmark: str) -> list[str]:
    """Data for tasks that read more than the images: a recipe without it is no valid experiment."""
    known = _data_of_tasks(benchmark)
    return [
        f"  - /data@data.{role}: {known[role]}  # for task {task}; others: config/data/, docs/adding_a_model.md"
        for task in recipe.active()
        if (role := str(ROLE_OF[task])) != RECONSTRUCT
    ]


def _data_of_tasks(benchmark: str) -> dict[str, str]:
    is_small = benchmark.startswith(TOYWORLD)  # laptop_smoke, too
    return _LAPTOP_DATA | ({} if is_small else _DATA)


def _how_to_read(described: ModelConfig, model: str, benchmark: str) -> list[str]:
    """How to train understanding, too, as comments: it needs two places, and not every model shares weights."""
    if "i2t" in described.align.active():
        return []
    data = _data_of_tasks(benchmark)["answer"]
    return [
        "# Where understanding and generation share weights, train both: add to `defaults`, above _self_,",
        f"#   - /data@data.answer: {data}",
        "# and here",
        f"#   models: {{{model}: {{align: {{tasks: {{i2t: {{weight: 1.0, batch: 4}}}}}}}}}}",
    ]


def _cost(described: ModelConfig, example: Precedent | None) -> str:
    if example is not None:
        plain = asdict(example.cost) | {"basis": "estimate"}
        said = f"of experiment {example.experiment}; yours depends on steps, batch and hardware"
    else:
        hours = round(described.resources.runtime_minutes / 60, 2)
        plain = {"hardware": "this machine", "hours": hours, "basis": "estimate"}
        said = "the limit models.*.resources.runtime_minutes; state what the first run took"
    return f"cost: {_flow(plain)}  # {said}"


def write(path: Path, text: str) -> None:
    """Write a new experiment; where it is no valid one the file is removed again."""
    write_atomic(path, text)
    try:
        compose.load(path.stem)
    except BaseException:
        path.unlink()
        raise


def check_model(model: str) -> None:
    """ValueError unless there is a complete configuration of this name."""
    known = model_names()
    if model in known and _is_complete(model):
        return
    said = "is a part of other configurations" if model in known else "no such model configuration"
    choices = [name for name in known if _is_complete(name)]
    raise ValueError(f"--model {model!r}: {said}; {suggestion(model, choices)}")


def _is_complete(model: str) -> bool:
    """Whether a file of config/model/ describes a model by itself."""
    try:
        compose.model_config(model)
    except ValueError:
        return False
    return True


def _described(source: DataSource) -> list[str]:
    plain = {
        f.name: getattr(source, f.name)
        for f in fields(source)
        if (f.default is not MISSING and getattr(source, f.name) != f.default)
        or (f.default is MISSING and getattr(source, f.name))
    }
    plain["world"] = asdict(source.world) if source.world is not None else None
    return [f"    {key}: {_flow(value)}" for key, value in plain.items() if value is not None]


def _other(role: str, source: DataSource, example: Precedent | None) -> list[str]:
    assert example is not None
    said = f"for its other tasks, as experiment {example.experiment} has it"
    return [f"  {role}:  # {said}", *_described(source)]


def _threshold(unreadable: float, options: Mapping[str, Any]) -> list[str]:
    if unreadable <= MAX_UNREADABLE:
        return []
    accepted = {**options, "max_unreadable": round(min(1.0, unreadable * 1.1 + 0.0001), 4)}
    place = ", in place of the line above" if options else ""
    return [
        f"    # {unreadable:.2%} of the images cannot be read, and a run stops above {MAX_UNREADABLE:.1%}: repair",
        f"    # them, or accept it{place}:",
        f"    # options: {_flow(accepted)}",
    ]


def _flow(value: Any) -> str:
    """A value as one line of YAML: JSON is YAML. What looks like an interpolation is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")
