"""Rules between the fields of an experiment: what types alone cannot say.

Each rule raises ValueError with key path, value and what is allowed. No torch here; what only a family
knows about its network is checked by the family itself (`reca check EXPERIMENT`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.config.options import check_benchmark_options
from reca.config.recipe import ROLE_OF, for_arm, visits
from reca.config.schema import (
    SEED,
    BenchmarkConfig,
    DataSource,
    Experiment,
    ModelConfig,
    Pretrain,
    ToyWorld,
    Weights,
)
from reca.core.documents import fields, read_yaml
from reca.core.structure import problem, suggestion
from reca.data.role import USES, Role
from reca.models.registry import FAMILIES, GROUP, brought, editing, find_family

if TYPE_CHECKING:
    from reca.data.order import Visits
    from reca.models.contract import Use

ROLES = tuple(role.value for role in Role)
CAPTION_FACTS = ("noise", "relation", "count", "two", "colour", "single_colour")
OPTIONAL_FACTS = ("everything",)
TOYWORLD = ("laptop", "laptop_edit")
SCENE_SIDE = 16  # pixels: `SIZE` of reca.toyworld.scenes, a package above this one
JUDGED = ("wise", "imgedit", "gedit", "t2i_compbench", "mmvet")
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def check(experiment: Experiment, config_dir: Path) -> None:
    """Run every rule; the first that fails raises."""
    _check_root(experiment)
    for name, model in experiment.models.items():
        _check_model(f"models.{name}", model)
        _check_arms(experiment, name, model)
    entries = {name for model in experiment.models.values() for name in model.data.values()}
    if (pretrain := experiment.pretrain) is not None:
        entries |= {*pretrain.answers.values(), *pretrain.texts.values()}
    for role, source in experiment.data.items():
        _check_data(f"data.{role}", role, source, entries)
    for name, benchmark in experiment.benchmarks.items():
        _check_benchmark(f"benchmarks.{name}", benchmark)
    if experiment.pretrain is not None:
        _check_pretrain(experiment)
    _check_roles(experiment)
    _check_resolutions(experiment)
    _check_guidance(experiment)
    _check_expectations(experiment)
    _check_why(experiment)
    _check_sources(experiment, config_dir)


def _check_root(experiment: Experiment) -> None:
    _nonempty("models", experiment.models)
    if experiment.pretrain is None:
        _nonempty("benchmarks", experiment.benchmarks)
    _distinct("seeds", experiment.seeds)
    _distinct("arms", experiment.arms)
    _names("name", [experiment.name])
    for path in ("models", "data", "benchmarks"):
        _names(path, getattr(experiment, path))


# ---- models --------------------------------------------------------------------------------------
def _check_model(path: str, model: ModelConfig) -> None:
    if model.family not in FAMILIES and brought(model.family) is None:
        allowed = f"must be one of {', '.join(FAMILIES)}, or of an installed package ({GROUP})"
        raise problem(f"{path}.family", model.family, allowed)
    _check_weights(f"{path}.weights", model.weights)
    sampler, resources = model.sampler, model.resources
    known = find_family(model.family).sampler_options
    for name, value in sampler.options.items():
        if known is not None and name not in known:
            allowed = f"unknown option; {suggestion(name, known)}"
            raise problem(f"{path}.sampler.options.{name}", value, allowed)
    _distinct(f"{path}.sampler.guidance", sampler.guidance)
    if resources.nodes > 1 and resources.gpus == 0:
        raise problem(f"{path}.resources.gpus", 0, "must be at least 1 on several nodes")
    if model.seeds:
        _distinct(f"{path}.seeds", model.seeds)
    if model.family == "showo":
        _check_showo_network(f"{path}.network", model.network)


def _check_weights(path: str, weights: Weights) -> None:
    _names(f"{path}.companions", weights.companions)
    wanted = "source" if weights.kind == "source" else "path"
    other = "path" if wanted == "source" else "source"
    if getattr(weights, wanted) is None:
        raise problem(f"{path}.{wanted}", None, f"must be given where kind is {weights.kind}")
    if getattr(weights, other) is not None:
        value = getattr(weights, other)
        raise problem(f"{path}.{other}", value, f"must be null where kind is {weights.kind}")


def _check_showo_network(path: str, network: dict[str, Any]) -> None:
    """The combinations a typo hits most; `ShowoConfig` is the full check, with torch."""
    reader = network.get("understanding", "vq")
    if reader not in ("clip", "vq"):
        raise problem(f"{path}.understanding", reader, "must be one of clip, vq")
    if reader == "clip" and network.get("clip_vision") is None:
        raise problem(f"{path}.clip_vision", None, "understanding clip needs the sizes of a tower")
    if reader == "vq" and network.get("clip_vision") is not None:
        raise problem(f"{path}.clip_vision", "...", "must be null where understanding is vq")
    resolution, factor = network.get("resolution", 256), _down_sampling(path, network)
    if not isinstance(resolution, int) or resolution < factor or resolution % factor:
        allowed = f"must be a multiple of {factor}, the tokenizer's pixels per image code"
        raise problem(f"{path}.resolution", resolution, allowed)


def _down_sampling(path: str, network: dict[str, Any]) -> int:
    """Pixels per code and side: every level of the tokenizer but the last halves the picture."""
    vq = network.get("vq", {})
    if not isinstance(vq, dict):
        raise problem(f"{path}.vq", vq, "must be a mapping, the sizes of the tokenizer")
    levels = vq.get("enc_ch_mult", (1, 2, 2, 4, 4))
    if not isinstance(levels, list | tuple) or not levels:
        raise problem(f"{path}.vq.enc_ch_mult", levels, "must be a list, one width for each level")
    return 2 ** (len(levels) - 1)


def _check_arms(experiment: Experiment, name: str, model: ModelConfig) -> None:
    """Every arm's recipe must be whole before anything runs."""
    for arm in model.arms:
        if arm not in experiment.arms:
            allowed = f"is no arm of this experiment; {suggestion(arm, experiment.arms)}"
            raise problem(f"models.{name}.arms", arm, allowed)
    arms = experiment.arms_of(name)
    trained = [arm for arm in arms if arm != "base"]
    if trained and "reca" not in model.align.active():
        tasks = list(model.align.active())
        allowed = f"arm {trained[0]} needs task reca, weight above 0"
        raise problem(f"models.{name}.align.tasks", tasks, allowed)
    controls = [arm for arm in trained if arm != "reca"]
    for own in (None, *controls):
        try:
            (model.align if own is None else for_arm(model.align, own)).validate()
        except ValueError as error:
            where = "" if own is None else f" (arm {own})"
            raise ValueError(f"models.{name}.{error}{where}") from error


def _check_pretrain(experiment: Experiment) -> None:
    pretrain = experiment.pretrain
    assert pretrain is not None
    _names("pretrain.parts", pretrain.parts)
    _names("pretrain.phases", pretrain.phases)
    for name, recipe in pretrain.phases.items():
        try:
            recipe.validate()
        except ValueError as error:
            raise ValueError(f"pretrain.phases.{name}.{error}") from error
    for section in ("binding", "answers", "texts"):
        for name in getattr(pretrain, section):
            if name not in pretrain.phases:
                allowed = f"is no phase; {suggestion(name, pretrain.phases)}"
                raise problem(f"pretrain.{section}", name, allowed)
    for name, model in experiment.models.items():
        if SEED in (pretrain.start or "") and not model.weights.per_seed():
            allowed = f"must hold {SEED}, as pretrain.start does"
            raise problem(f"models.{name}.weights.path", model.weights.path, allowed)


# ---- data and benchmarks -------------------------------------------------------------------------
def _check_data(path: str, role: str, source: DataSource, entries: Collection[str] = ()) -> None:
    if role not in ROLES and role not in entries:
        raise problem(path, source.kind, f"unknown role {role!r}; {suggestion(role, ROLES)}")
    for folder in source.companions:
        if folder in ("", ".", "..") or not {"/", "="}.isdisjoint(folder):
            allowed = "must be the first folder of the images' paths, a name without / and ="
            raise problem(f"{path}.companions", folder, allowed)
    if source.kind == "world":
        for name in ("source", "path"):
            if getattr(source, name) is not None:
                value = getattr(source, name)
                raise problem(f"{path}.{name}", value, "must be null where kind is world")
        if source.world is None:
            raise problem(f"{path}.world", None, "must be given where kind is world")
        check_world(f"{path}.world", source.world)
        return
    if source.world is not None:
        raise problem(f"{path}.world", "...", f"must be null where kind is {source.kind}")
    if (source.source is None) == (source.path is None):
        raise problem(
            f"{path}.source", source.source, "give either source or path, and one of them"
        )


def check_world(path: str, world: ToyWorld) -> None:
    """Facts and rates of a drawn world; ValueError names the key below `path`."""
    if world.kind != "images":
        return
    for name in CAPTION_FACTS:
        if name not in world.caption:
            raise ValueError(
                f"{path}.caption.{name} is missing: must be a number from 0 to 1, as must {', '.join(CAPTION_FACTS)}; "
                "config/data/laptop_world.yaml has values"
            )
    for name, rate in world.caption.items():
        if name not in CAPTION_FACTS + OPTIONAL_FACTS:
            allowed = f"unknown key; {suggestion(name, CAPTION_FACTS + OPTIONAL_FACTS)}"
            raise problem(f"{path}.caption.{name}", rate, allowed)
    total = sum(world.caption[name] for name in ("relation", "count", "two"))
    if total > 1:
        raise problem(f"{path}.caption", total, "relation + count + two must be at most 1")


def _check_benchmark(path: str, benchmark: BenchmarkConfig) -> None:
    _names(f"{path}.companions", benchmark.companions)
    if benchmark.kind in TOYWORLD:
        if benchmark.prompts < 1:
            raise problem(f"{path}.prompts", benchmark.prompts, "must be at least 1")
        if benchmark.curve_prompts > benchmark.prompts:
            allowed = f"must be at most prompts, which is {benchmark.prompts}"
            raise problem(f"{path}.curve_prompts", benchmark.curve_prompts, allowed)
    elif benchmark.source is None:
        raise problem(f"{path}.source", None, f"must be given where kind is {benchmark.kind}")
    check_benchmark_options(benchmark.kind, benchmark.options, f"{path}.options")
    if benchmark.options.get("circular") and not benchmark.rotations:
        allowed = f"needs all rotations of the questions; set {path}.rotations"
        raise problem(f"{path}.options.circular", True, allowed)
    if benchmark.kind in JUDGED and benchmark.judge is None:
        raise problem(f"{path}.judge", None, f"must be given where kind is {benchmark.kind}")


def _check_roles(experiment: Experiment) -> None:
    """Each task finds its data, and a family that can do it: i2t reads conversations, most others draw pictures."""
    for name, model in experiment.models.items():
        for role in model.data:
            if role not in ROLES:
                allowed = f"unknown role; {suggestion(role, ROLES)}"
                raise problem(f"models.{name}.data.{role}", model.data[role], allowed)
        for benchmark in model.benchmarks:
            if benchmark not in experiment.benchmarks:
                allowed = f"is no benchmark here; {suggestion(benchmark, experiment.benchmarks)}"
                raise problem(f"models.{name}.benchmarks", benchmark, allowed)
        for task in model.align.active():
            if task == "edit" and not find_family(model.family).edits:
                allowed = f"must be one of {', '.join(editing())}"
                raise problem(f"models.{name}.align.tasks.edit", model.family, allowed)
            role = model.data.get(ROLE_OF[task], ROLE_OF[task])
            if role not in experiment.data:
                allowed = (
                    f"task {task} of models.{name} needs it; add `- /data@data.{role}: NAME`, a file of config/data/, "
                    "to the experiment's defaults, or set the task's weight to 0"
                )
                raise problem(f"data.{role}", None, allowed)
    for role in pretrained_roles(experiment.pretrain) if experiment.pretrain else ():
        if role not in experiment.data:
            raise problem(f"data.{role}", None, "pretraining reads it")


def aligned_roles(experiment: Experiment, name: str) -> dict[str, str]:
    """Role -> entry of `data` of what the arms of one model read: a task without weight reads nothing."""
    model = experiment.models[name]
    recipes = [for_arm(model.align, arm) for arm in experiment.arms_of(name) if arm != "base"]
    roles = dict.fromkeys(role for recipe in recipes for role in recipe.roles())
    return {role: model.data.get(role, role) for role in roles}


def cached_uses(experiment: Experiment, name: str) -> dict[Use, Role]:
    """Uses of a model's frozen encoders -> the role whose images they encode, for what its arms read."""
    return {use: role for role, use in USES.items() if role in aligned_roles(experiment, name)}


def cache_visits(
    experiment: Experiment, name: str, use: Use, seeds: Sequence[int] | None = None
) -> Visits | None:
    """What all arms of a model read of the images of a use with `seeds`; None where the cache holds every image.

    Edits are pairs of images, so their cache holds all.
    """
    model, role = experiment.models[name], cached_uses(experiment, name)[use]
    if model.cache_rows == "all" or use == "edit":
        return None
    recipes = [for_arm(model.align, arm) for arm in experiment.arms_of(name) if arm != "base"]
    ranks = max(1, model.resources.gpus) * model.resources.nodes
    return visits(recipes, role, seeds or model.seeds or experiment.seeds, ranks)


def pretrained_roles(pretrain: Pretrain) -> list[str]:
    """The entries of `data` that pretraining reads: its parts look at pictures, its phases at what their tasks do."""
    entries = [Role.RECONSTRUCT.value] if pretrain.parts else []
    chosen = {Role.ANSWER: pretrain.answers, Role.TEXT: pretrain.texts}
    for name, recipe in pretrain.phases.items():
        entries += [chosen.get(role, {}).get(name, role.value) for role in recipe.roles()]
    return list(dict.fromkeys(entries))


def needed_data(experiment: Experiment, models: Iterable[str] | None = None) -> list[str]:
    """The entries of `data` that a run of these models (all of them) reads."""
    if experiment.pretrain is not None:
        return pretrained_roles(experiment.pretrain)
    chosen = experiment.models if models is None else models
    found = [entry for name in chosen for entry in aligned_roles(experiment, name).values()]
    return list(dict.fromkeys(found))


def _check_resolutions(experiment: Experiment) -> None:
    """The examiner of the toy world reads squares of scenes; a family may have another word for its size."""
    for name, model in experiment.models.items():
        side = model.network.get("resolution")
        if not isinstance(side, int) or (side >= SCENE_SIDE and side % SCENE_SIDE == 0):
            continue
        for benchmark in model.benchmarks or experiment.benchmarks:
            kind = experiment.benchmarks[benchmark].kind
            if kind in TOYWORLD:
                allowed = (
                    f"must be a multiple of {SCENE_SIDE}, the side of the images that benchmark {benchmark} (kind "
                    f"{kind}) examines; or choose other benchmarks"
                )
                raise problem(f"models.{name}.network.resolution", side, allowed)


def _check_guidance(experiment: Experiment) -> None:
    """A sweep needs prompts that are not the test's: guidance is never chosen on reported prompts."""
    arms = [experiment.arms_of(model) for model in experiment.models]
    for name, benchmark in experiment.benchmarks.items():
        if benchmark.base_guidance and benchmark.kind not in TOYWORLD:
            raise problem(f"benchmarks.{name}.base_guidance", True, f"is for {', '.join(TOYWORLD)}")
        if benchmark.base_guidance and not all("base" in own for own in arms):
            allowed = "needs the arm base, whose guidance it is"
            raise problem(f"benchmarks.{name}.base_guidance", True, allowed)
    if any(benchmark.development_prompts for benchmark in experiment.benchmarks.values()):
        return
    for name, model in experiment.models.items():
        if len(model.sampler.guidance) > 1:
            allowed = "must hold one value unless a benchmark has development_prompts to choose on"
            raise problem(f"models.{name}.sampler.guidance", model.sampler.guidance, allowed)


def _check_expectations(experiment: Experiment) -> None:
    for i, expected in enumerate(experiment.expect):
        path = f"expect[{i}]"
        if expected.model not in experiment.models:
            allowed = f"unknown model; {suggestion(expected.model, experiment.models)}"
            raise problem(f"{path}.model", expected.model, allowed)
        if expected.metric.split(".")[0] not in experiment.benchmarks:
            allowed = (
                f"must begin with a benchmark; {suggestion(expected.metric, experiment.benchmarks)}"
            )
            raise problem(f"{path}.metric", expected.metric, allowed)
        if expected.arm not in experiment.arms_of(expected.model):
            allowed = f"is no arm of this experiment; {suggestion(expected.arm, experiment.arms)}"
            raise problem(f"{path}.arm", expected.arm, allowed)


def _check_why(experiment: Experiment) -> None:
    """The figures compare models of this experiment, which differ in what a figure varies and in nothing else."""
    if experiment.why is None:
        return
    named = {
        "steps": experiment.why.steps,
        "understanding": experiment.why.understanding,
        "conditions": [experiment.why.conditions] if experiment.why.conditions else [],
    }
    for what, names in named.items():
        for name in names:
            if name not in experiment.models:
                allowed = f"unknown model; {suggestion(name, experiment.models)}"
                raise problem(f"why.{what}", name, allowed)
    recipes = {name: experiment.models[name].align for name in experiment.why.steps}
    ends = {recipe.horizon or recipe.steps for recipe in recipes.values()}
    for name, recipe in recipes.items():
        if len(ends) > 1:
            allowed = (
                f"must be the same for all of why.steps, whose schedules end at {sorted(ends)}"
            )
            raise problem(f"models.{name}.align.horizon", recipe.horizon, allowed)


# ---- sources -------------------------------------------------------------------------------------
def _check_sources(experiment: Experiment, config_dir: Path) -> None:
    used = dict(sources_of(experiment))
    if not used:
        return
    from reca.sources.catalogue import NAME, NAME_RULE

    known = _known_sources(config_dir / "sources.yaml")
    for path, name in used.items():
        if name not in known:
            allowed = f"not in config/sources.yaml; {suggestion(name, known)}"
            raise problem(path, name, allowed)
        if not NAME.fullmatch(name):
            raise problem(path, name, NAME_RULE)


def sources_of(experiment: Experiment) -> Iterable[tuple[str, str]]:
    """Key path and name of every source that an experiment uses."""
    for name, model in experiment.models.items():
        if model.weights.source is not None:
            yield f"models.{name}.weights.source", model.weights.source
        for role, source in model.weights.companions.items():
            yield f"models.{name}.weights.companions.{role}", source
    for role, data in experiment.data.items():
        if data.source is not None:
            yield f"data.{role}.source", data.source
        for folder, source in data.companions.items():
            yield f"data.{role}.companions.{folder}", source
    for name, benchmark in experiment.benchmarks.items():
        if benchmark.source is not None:
            yield f"benchmarks.{name}.source", benchmark.source
        for role, source in benchmark.companions.items():
            yield f"benchmarks.{name}.companions.{role}", source
        if benchmark.judge is not None and benchmark.judge.source is not None:
            yield f"benchmarks.{name}.judge.source", benchmark.judge.source


def needed_sources(experiment: Experiment) -> Iterable[tuple[str, str]]:
    """Those of `sources_of` that a run reads: of data with a task and of benchmarks that a model takes."""
    takes = [m.benchmarks or experiment.benchmarks for m in experiment.models.values()]
    needed = {
        "models": set(experiment.models),
        "data": set(needed_data(experiment)),
        "benchmarks": {name for names in takes for name in names},
    }
    for path, source in sources_of(experiment):
        kind, name, _ = path.split(".", 2)
        if name in needed[kind]:
            yield path, source


def without_weights(model: str, folder: str) -> str:
    """What is wrong with a model whose folder of weights is missing, and what to do."""
    wrong = f"models.{model}.weights.path = {folder!r}: no such folder"
    if (parts := Path(folder).parts)[:1] == ("results",) and len(parts) > 1:
        return f"{wrong}; first run: snakemake --cores all --config experiment={parts[1]}"
    return f"{wrong}; make the base model first, or set the path"


@cache
def _known_sources(path: Path) -> frozenset[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing, though the experiment names sources")
    listed = fields(read_yaml(path), path)
    return frozenset(listed.get("sources", listed))


# ---- small predicates ----------------------------------------------------------------------------
def _nonempty(path: str, value: Any) -> None:
    if not value:
        raise problem(path, value, "must not be empty")


def check_name(path: str, name: str) -> None:
    """ValueError unless `name` can be part of a path and of a command line."""
    _names(path, [name])


def _names(path: str, names: Iterable[str]) -> None:
    """Names become parts of paths and of command lines."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise problem(path, name, "a name is made of a-z, 0-9 and _")


def _distinct(path: str, values: Sequence[Any]) -> None:
    _nonempty(path, values)
    if len(set(values)) < len(values):
        raise problem(path, values, "must not hold a value twice")
