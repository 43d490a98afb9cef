"""What each job depends on: its slice of the configuration, and the code that it runs."""

import json
from dataclasses import asdict
from functools import cache

from reca.commands.code import stage_code
from reca.config.validate import cache_visits
from reca.models.registry import is_runnable
from reca.sources.fetch import list_sources


def section(value):
    """A slice of the configuration as JSON text: a job's parameter, so that an edit reruns what it touches."""
    return json.dumps(value, sort_keys=True)


def of_model(model, *fields):
    """Fields of a model's configuration, with its family, which says how to read them."""
    found = asdict(EXPERIMENT.models[model])
    return {name: found[name] for name in ("family", *fields)}


def of_base(model, place):
    """A base model: its network, and the weights of this place."""
    weights = asdict(weights_of(model, place))
    return {**of_model(model, "network"), "weights": weights}


@cache
def pins():
    """What fixes the content of every download: its origin and its files, from sources.yaml and the lock."""
    fields = ("kind", "repo", "id", "revision", "files")
    found = {status.source.name: asdict(status.source) for status in list_sources()}
    return {name: {key: entry[key] for key in fields} for name, entry in found.items()}


def of_data(*roles):
    return of_roles({role: role for role in roles})


def of_roles(entries):
    """Configuration of data sets by role."""
    return {
        "data": {
            role: asdict(EXPERIMENT.data[name])
            for role, name in entries.items()
            if name in EXPERIMENT.data
        }
    }


def of_cache(wc):
    """What a cache depends on; options only where they are not the default, so that older caches stay current."""
    dtype = EXPERIMENT.models[wc.model].cache_dtype
    seeds = [seed for seed in SEEDS[wc.model] if place_of(wc.model, seed) == wc.place]
    read = cache_visits(EXPERIMENT, wc.model, wc.use, seeds)
    return {
        **of_model(wc.model),
        **of_data(caches_of(wc.model)[wc.use]),
        **({} if dtype == "fp32" else {"cache_dtype": dtype}),
        **({"visits": asdict(read)} if read else {}),
    }


# What each stage of a benchmark depends on: another judge samples no image anew.
SIZES = ("prompts", "questions", "rotations", "reconstructions")
SAMPLED = (*SIZES, "images_per_prompt", "seed", "seed_schedule")
OBSERVED = (*SIZES, "images_per_prompt", "crop_black", "scorer")
SCORED = (*OBSERVED, "options")
# Only of test prompts, and only where set, so that older results stay current.
TESTED = ("base_guidance", "curve_prompts", "test_seeds")
DEVELOPED = ("development_prompts", "images_per_prompt", "seed", "seed_schedule")


def of_kind(name, fields):
    found = asdict(EXPERIMENT.benchmarks[name])
    return {field: found[field] for field in ("kind", *fields)}


def of_test(name, split):
    """The test prompts of a small benchmark: their own seeds, and other guidance than the chosen one."""
    found = asdict(EXPERIMENT.benchmarks[name])
    wanted = TESTED if split == "test" and name in SMALL else ()
    return {field: found[field] for field in wanted if found[field]}


def of_sampling(model, run, name, split):
    """How one run's images are sampled: where guidance was swept, the test uses what was chosen."""
    found = of_model(model, "sampler")
    sampler = found["sampler"] | EXPERIMENT.benchmarks[name].sampler.get(model, {})
    if name in SMALL and split == "test" and model in SWEPT:
        del sampler["guidance"]
    fields = SAMPLED if split == "test" else DEVELOPED
    fields = fields if name in SMALL else (*fields, "batch_size")
    described = of_kind(name, fields) | of_test(name, split)
    return {**found, "sampler": sampler, "run": run, "benchmark": described}


def of_observing(name):
    """The examiner sees all that is there; others look for what a benchmark asks, and may do without some of it."""
    found = of_kind(name, ("crop_black",) if name in SMALL else (*OBSERVED, "judge"))
    partial = EXPERIMENT.benchmarks[name].options.get("partial")
    return found | ({"options": {"partial": partial}} if partial else {})


def of_scoring(name, split):
    if name not in SMALL:
        return of_kind(name, SCORED)
    sizes = SAMPLED if split == "test" else DEVELOPED
    return of_kind(name, (*sizes, "crop_black", "options")) | of_test(name, split)


def of_evaluation(wc):
    """By run of an arm and by small benchmark, the configuration of the three stages."""
    return {
        run: {
            name: {
                "sample": of_sampling(wc.model, run, name, wc.split),
                "observe": of_observing(name),
                "score": of_scoring(name, wc.split),
            }
            for name in small_benchmarks(wc.model, wc.split)
        }
        for run in runs_of(wc.model, wc.arm)
    }


def code_of_evaluation(wc):
    return " ".join(
        code(stage, wc.model if stage == "sample" else None, name)
        for name in small_benchmarks(wc.model, wc.split)
        for stage in ("sample", "observe", "score")
    )


def of_report():
    """Everything but what jobs ask of a machine and where downloads come from."""
    found = resolved(EXPERIMENT)
    models = {
        name: {
            k: v
            for k, v in m.items()
            if k != "resources"
            and (k, v)
            not in (("cache_dtype", "fp32"), ("cache_rows", "all"), ("arms", []))
        }
        for name, m in found["models"].items()
    }
    for name in ("scale", "why"):  # reports made before there were any stay current
        if found[name] is None:
            del found[name]
    return {**found, "models": models, "mirror": None}


def options_of_pretraining():
    """What `pretrain:` sets besides its phases; a default is left out, so that older bases stay current."""
    pretrain = EXPERIMENT.pretrain
    chosen = {
        "binding": pretrain.binding,
        "contrast": pretrain.contrast,
        "answers": pretrain.answers,
        "texts": pretrain.texts,
    }
    if pretrain.storage != "float32":
        chosen["storage"] = pretrain.storage
    if pretrain.log_every != 1:
        chosen["log_every"] = pretrain.log_every
    return {name: value for name, value in chosen.items() if value}


def of_pretraining(model, **recipe):
    """The network, and what of the pretraining recipe a job reads."""
    return {
        **of_model(model, "network"),
        **recipe,
    }


@cache
def code(stage, model=None, benchmark=None):
    """Hash of the modules that a stage runs: shell rules do not see edits of code by themselves.

    A family that is configuration only has no module yet: its plan can be shown, its command refuses.
    """
    family = EXPERIMENT.models[model].family if model else None
    kind = EXPERIMENT.benchmarks[benchmark].kind if benchmark else None
    absent = [family] if family and not is_runnable(family) else []
    known = (None if name in absent else name for name in (family, kind))
    return " ".join(
        [stage_code(stage, *known), *(f"without {name}" for name in absent)]
    )
