"""A published experiment at a smaller scale: smaller sizes and counts, and every other field as published.

`scale=tiny` on the command line, `--config scale=tiny` in the workflow; the numbers are in `config/scales/`. Results
lie in `results/<experiment>-<scale>`, which no experiment's name can be. No torch here: Snakemake calls this while it
parses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.config.recipe import Recipe
from reca.config.schema import SCALES, BenchmarkConfig, Experiment, ModelConfig
from reca.core.documents import fields, read_yaml
from reca.core.structure import problem, suggestion

# Names of network fields that are sizes or counts, by what they are. Those of `_NESTED` are sections of such fields.
_NETWORK = {
    "side of an image, in pixels or patches": (
        "resolution condition_resolution image_size patch_size most least max_latent_size "
        "vit_max_num_patch_per_side table"
    ),
    "width": (
        "hidden_size intermediate_size encoder_width decoder_width head_width width ch base_channels channels "
        "projector latent_channels z_channels embed_dim caption_channels attention_head_dim cross_attention_head_dim"
    ),
    "widths by level of an autoencoder": "enc_ch_mult dec_ch_mult ch_mult multipliers channel_multiplier",
    "depth": (
        "num_hidden_layers num_layers encoder_depth decoder_depth head_depth num_res_blocks enc_num_res_blocks "
        "dec_num_res_blocks resnets encoder_layers decoder_layers residual"
    ),
    "number of heads": (
        "num_attention_heads num_key_value_heads num_cross_attention_heads encoder_heads decoder_heads"
    ),
    "number of normalised groups, which must divide the width": "groups norm_groups",
    "number of tokens": "queries buffers",
    "vocabulary, codebook or number of classes": "vocab_size llm_vocab_size num_embeddings classes",
    "id of a mark, which follows the vocabulary": (
        "end endoftext bos eos image_start image_end image start_of_image end_of_image"
    ),
}
_SIZES = {name: what for what, names in _NETWORK.items() for name in names.split()}
_NOT_SIZES = ("options",)  # a section of the network whose fields are choices, whatever their name

# All that a scale may change, with the reason. `*` is one name.
ALLOWED = {
    "scale": "names the scale",
    "cost.*": "time and hardware of the smaller run",
    "models.*.weights.path": "result of another experiment, taken at the same scale",
    "models.*.align.steps": "number of optimiser steps",
    "models.*.align.warmup": "in proportion to the steps",
    "models.*.align.horizon": "in proportion to the steps",
    "models.*.align.checkpoint_every": "in proportion to the steps",
    "models.*.align.tasks.*.batch": "samples of a micro-batch",
    "models.*.sampler.steps": "one step for each code of a smaller image (Janus-Pro)",
    "models.*.resources.*": "devices, memory and time of a job",
    "benchmarks.*.prompts": "number of prompts; a limited benchmark is marked as partial",
    "benchmarks.*.questions": "number of questions; a limited benchmark is marked as partial",
    "benchmarks.*.images_per_prompt": "number of images",
    "benchmarks.*.shards": "number of jobs",
}


def reason(path: str) -> str | None:
    """Why a scale may change the field at this dotted path; None if it must not."""
    model, _, inside = path.partition(".network.")
    if inside and model.count(".") == 1 and model.startswith("models."):
        names = inside.split(".")
        return None if names[0] in _NOT_SIZES else _SIZES.get(names[-1])
    for pattern, why in ALLOWED.items():
        if re.fullmatch(pattern.replace(".", r"\.").replace("*", "[^.]+"), path):
            return why
    return None


# ---- names ---------------------------------------------------------------------------------------
def label(experiment: Experiment) -> str:
    """The experiment's name in paths: `paper_bagel`, at a scale `paper_bagel-tiny`."""
    return f"{experiment.name}-{experiment.scale}" if experiment.scale else experiment.name


def split(name: str) -> tuple[str, str | None]:
    """The experiment and the scale that `label` joined; None without one."""
    experiment, _, scale = name.rpartition("-")
    return (experiment, scale) if experiment and scale in SCALES else (name, None)


# ---- what a scale changes ------------------------------------------------------------------------
def overrides(experiment: Experiment, config_dir: Path) -> list[str]:
    """What `experiment.scale` changes, as Hydra overrides.

    ValueError for an experiment that has no scale, or a file in `config/scales/` that sets a field which is not a size.
    """
    assert experiment.scale is not None
    path = config_dir / "scales" / f"{experiment.scale}.yaml"
    kinds = {"steps": int, "batch": int, "benchmark": dict, "resources": dict, "cost": dict}
    kinds |= {"shards": dict}
    numbers = fields(
        read_yaml(path), path, **kinds, networks=dict, variants=list, sampler_steps=dict
    )
    _check_published(experiment)
    changed = {f"cost.{name}": value for name, value in numbers["cost"].items()}
    for name, model in experiment.models.items():
        found = _of_model(model, f"models.{name}", numbers, path, experiment.scale)
        changed |= {f"models.{name}.{key}": value for key, value in found.items()}
    for name, benchmark in experiment.benchmarks.items():
        most = numbers["benchmark"]
        found = _of_benchmark(
            benchmark, most | {"shards": numbers["shards"].get(name, most["shards"])}
        )
        changed |= {f"benchmarks.{name}.{key}": value for key, value in found.items()}
    for key, value in changed.items():
        if reason(key) is None:
            raise ValueError(
                f"{path}: {key} = {value!r} is neither a size nor a count (reca/config/scale.py); leave it out"
            )
    return [f"++{key}={json.dumps(value)}" for key, value in changed.items()]


def _check_published(experiment: Experiment) -> None:
    """The laptop's experiments are that small already, and their weights fit one network."""
    allowed = f"scale {experiment.scale} is for experiments on released weights and data, not for the toy world's"
    for name, source in experiment.data.items():
        if source.kind == "world":
            raise problem(f"data.{name}.kind", source.kind, allowed)


def _of_model(
    model: ModelConfig, where: str, numbers: Mapping[str, Any], file: Path, scale: str
) -> dict[str, Any]:
    changed = {
        f"network.{key}": value
        for key, value in leaves(sizes(model.family, model.network, numbers, file))
    }
    changed |= {f"align.{key}": value for key, value in _of_recipe(model.align, numbers).items()}
    if model.family in numbers["sampler_steps"]:
        changed["sampler.steps"] = numbers["sampler_steps"][model.family]
    for name, most in numbers["resources"].items():
        changed[f"resources.{name}"] = min(getattr(model.resources, name), most)
    if model.weights.kind == "shipped":
        changed["weights.path"] = _at_scale(model.weights.path, f"{where}.weights.path", scale)
    return changed


def _at_scale(path: str | None, where: str, scale: str) -> str:
    """The folder of an earlier experiment's result at this scale."""
    parts = Path(path or "").parts
    if len(parts) < 2 or parts[0] != "results":
        allowed = (
            f"must be below results/ for scale {scale}: other weights have a network of their own"
        )
        raise problem(where, path, allowed)
    return str(Path("results", f"{parts[1]}-{scale}", *parts[2:]))


def sizes(
    family: str, published: Mapping[str, Any], numbers: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """The sizes of a family's network, with those of the variants that `published` is one of."""
    if family not in numbers["networks"]:
        allowed = f"{file} has no sizes of it; {suggestion(family, numbers['networks'])}"
        raise problem("family", family, allowed)
    found = dict(numbers["networks"][family])
    for variant in numbers["variants"]:
        if all(published.get(name) == value for name, value in variant["where"].items()):
            found |= variant["network"]
    return found


def _of_recipe(recipe: Recipe, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Fewer steps and samples; what is counted in steps or micro-batches keeps its share of the run, rounded up."""
    steps = min(recipe.steps, numbers["steps"])
    counted = {name: getattr(recipe, name) for name in ("warmup", "horizon", "checkpoint_every")}
    in_proportion = {n: -(-count * steps // recipe.steps) for n, count in counted.items() if count}
    batches = {
        f"tasks.{name}.batch": min(task.batch, numbers["batch"])
        for name, task in recipe.tasks.items()
    }
    return {"steps": steps, **in_proportion, **batches}


def _of_benchmark(benchmark: BenchmarkConfig, most: Mapping[str, int]) -> dict[str, int]:
    """At most these counts; 0 means all that the benchmark has."""
    return {name: min(getattr(benchmark, name) or count, count) for name, count in most.items()}


# ---- differences ---------------------------------------------------------------------------------
def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in nested mappings; lists are values."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def changes(before: Any, after: Any) -> Sequence[tuple[str, Any, Any]]:
    """Dotted path, value before and after of all that differs; `...` where there is none."""
    old, new = dict(leaves(before)), dict(leaves(after))
    keys = [*old, *(key for key in new if key not in old)]
    found = [(key, old.get(key, ...), new.get(key, ...)) for key in keys]
    return [change for change in found if change[1] != change[2]]
