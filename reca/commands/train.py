"""base, cache, align, pretrain: the stages that train models."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.commands.code import stage_code
from reca.commands.inputs import (
    of_section,
    pairs,
    read_section,
    records_of,
    work_folder,
)
from reca.config.compose import section
from reca.config.recipe import Recipe, for_arm
from reca.config.schema import DataSource, Fit, Weights
from reca.core.artifacts import MANIFEST, Stage, read_json, size_of, write_atomic
from reca.core.ownership import WorkFolder, final_name, is_mark
from reca.core.sealed import seal, unseal
from reca.data.order import Visits
from reca.data.prompts import bank

if TYPE_CHECKING:
    from reca.align.batches import TaskData
    from reca.align.run import Trained


def import_base(arguments: Namespace) -> None:
    """Write the base model folder from shipped weights or from downloads."""
    from reca.models.import_base import make_base

    plain = read_section(arguments.section)
    family, network, described = of_section(plain, "family", "network", "weights")
    weights, inputs = section(Weights, described), pairs("--input", arguments.input)
    folder = None if weights.path is None else Path(weights.path)
    if folder is not None:
        inputs = {"weights": folder}
    code = stage_code("base", family)
    with Stage(
        "base",
        arguments.out,
        inputs=records_of(inputs),
        section=plain,
        code=code,
        reads=inputs.values(),
    ) as stage:
        parts = {role: _chosen(path, weights.file, role) for role, path in inputs.items()}
        make_base(family, network, stage.staging, folder=folder, parts=parts)


def _chosen(folder: Path, file: str | None, role: str) -> Path:
    """The configured checkpoint file of a download, else its folder."""
    return folder / file if file and role == "weights" else folder


def cache(arguments: Namespace) -> None:
    """Encode a data set with the frozen encoders."""
    import torch

    from reca.core.devices import placed
    from reca.data.formats import jpeg_side, max_unreadable
    from reca.features.build import build
    from reca.features.roles import open_role
    from reca.models.registry import load_model

    plain = read_section(arguments.section)
    family, data = of_section(plain, "family", "data")
    if len(data) != 1:
        raise ValueError(
            f"--section: data must have exactly one role, the one to encode, not {sorted(data)}"
        )
    (source,) = (section(DataSource, described) for described in data.values())
    model, folder = Path(arguments.model), Path(arguments.data)
    companions = pairs("--companion", arguments.companion)
    read = {"model": model, "data": folder, **_named("companion", companions)}
    build(
        placed(load_model(model), arguments.device),
        open_role(source, folder, companions),
        arguments.out,
        use=arguments.use,
        code=stage_code("cache", family),
        dtype=plain.get("cache_dtype", "fp32"),
        max_unreadable=max_unreadable(source.options),
        jpeg_side=jpeg_side(source.options),
        workers=workers if (workers := torch.get_num_threads()) > 1 else 0,
        visits=section(Visits, plain["visits"], "visits") if "visits" in plain else None,
        work=work_folder(arguments, "cache", read.values()).path,
        inputs=records_of(read),
        reads=read.values(),
        section={**plain, "use": arguments.use},
    )


def align(arguments: Namespace) -> None:
    """Train one arm. Under torchrun all ranks train and rank 0 writes."""
    from reca.align.run import feature_data, is_first, run, write
    from reca.commands.plan import before_a_run
    from reca.models.import_base import DESCRIPTION

    plain = read_section(arguments.section)
    family, described, data = of_section(plain, "family", "align", "data")
    recipe = for_arm(section(Recipe, described), arguments.arm)
    recipe.validate()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    folders, caches = pairs("--data", arguments.data), pairs("--cache", arguments.cache)
    model, started = Path(arguments.model), time.time()
    inputs = {"model": model, **_named("data", folders), **_named("cache", caches)}
    work, code = work_folder(arguments, "align", inputs.values()), stage_code("align", family)

    def train() -> tuple[Trained, TaskData]:
        sources = sources_of(data)
        read = feature_data(recipe, sources, folders, caches, seed=arguments.seed, ranks=ranks)
        done = run(
            model,
            read,
            recipe,
            seed=arguments.seed,
            work=work.path,
            code=code,
            allow=arguments.allow,
        )
        return done, read

    if not is_first():
        train()
        return
    # verified first, so that damage is found before hours of training
    records = records_of(inputs)
    if (prompts := recipe.read_prompts_file()) is not None:
        bank(recipe.prompts, prompts)  # names a missing or empty file before it is hashed
        records["prompts"] = Path(prompts)
    stage = Stage(
        "align",
        arguments.out,
        inputs=records,
        section={**plain, "arm": arguments.arm},
        seed=arguments.seed,
        code=code,
        started=started,
        reads=inputs.values(),
        needs=size_of(model),
    )
    network = read_json(model / DESCRIPTION)["network"]
    before_a_run(family, network, recipe, ranks)
    with work, stage:
        trained, read = train()
        write(trained, model, work.path, stage.staging)
        if ranks > 1:  # batches are per rank, so their number is a part of the recipe
            stage.describe(ranks=ranks)
        if not all((folder / MANIFEST).is_file() for folder in folders.values()):
            stage.describe(
                data=read.fingerprint()
            )  # captions of a user's folder are in no other record
        stage.note(**{**asdict(trained.summary), "checkpoint": None})


def sources_of(data: Mapping[str, Any]) -> dict[str, DataSource]:
    """The `data` part of a section as typed sources by role."""
    return {role: section(DataSource, described) for role, described in data.items()}


def _named(kind: str, folders: Mapping[str, Path]) -> dict[str, Path]:
    return {f"{kind}.{role}": folder for role, folder in folders.items()}


def pretrain(arguments: Namespace) -> None:
    """Train one component of a laptop base model, or the model itself."""
    from reca.align.trainer import HOUSEKEEPING
    from reca.toyworld.pretrain.run import pretrain_base, pretrain_part

    plain = read_section(arguments.section)
    family, network = of_section(plain, "family", "network")
    data, parts = pairs("--data", arguments.data), pairs("--input", arguments.input)
    code = stage_code("pretrain", family)
    begin = None if arguments.start is None else Path(arguments.start)
    started = {} if begin is None else {"start": begin}
    inputs = {**_named("data", data), **_named("part", parts), **started}
    name = f"pretrain {arguments.part}"
    work = work_folder(arguments, name, inputs.values())
    stage = Stage(
        name,
        arguments.out,
        inputs=records_of(inputs),
        section=plain,
        seed=arguments.seed,
        code=code,
        reads=inputs.values(),
    )
    is_part = arguments.part != "base"
    if is_part:
        (fit,), (folder,) = of_section(plain, "fit"), of_section(data, "reconstruct")
        fitted = section(Fit, fit)
    else:
        (phases,) = of_section(plain, "phases")
        recipes = {name: section(Recipe, phase) for name, phase in phases.items()}
        for recipe in recipes.values():
            recipe.validate()
    # what changes no weight, or only how they are written
    free = ["section.fit.checkpoint_every", "section.storage", "section.log_every"]
    free += [
        f"section.phases.{phase}.{field}"
        for phase in plain.get("phases", ())
        for field in HOUSEKEEPING
    ]
    with work, stage:
        _demand_same_run(work, stage.described, free=free)
        places = {"seed": arguments.seed, "work": work.path, "out": stage.staging}
        if is_part:
            loss: Any = pretrain_part(family, arguments.part, network, fitted, folder, **places)
        else:
            # worlds are the only kind of data that it supports
            worlds = {role: DataSource(kind="world") for role in data}
            places |= {"folders": data, "parts": parts, "code": code, "begin": begin}
            options = ("binding", "contrast", "answers", "texts", "storage", "log_every")
            places |= {name: plain[name] for name in options if name in plain}
            loss = pretrain_base(family, network, recipes, worlds, **places)
        stage.note(loss=loss)


def _demand_same_run(
    work: WorkFolder, described: Mapping[str, Any], *, free: Sequence[str]
) -> None:
    """Record in a work folder what its run is made from; ValueError lists what has changed since its work began.

    `free` lists dotted fields of `described` that change nothing.
    """
    from reca.align.checkpoint import refuse_changes

    inputs = {name: read["sha256"] for name, read in described["inputs"].items()}
    now = {name: described[name] for name in ("section", "seed", "code")} | {"inputs": inputs}
    record = work.path / "stage.json"
    begun = any(
        final_name(entry.name) != record.name and not is_mark(entry)
        for entry in work.path.iterdir()
    )
    if begun:
        before = unseal(record.read_bytes()) if record.is_file() else None
        if before is None:
            raise ValueError(
                f"{work.path}: holds unfinished work without an intact {record.name}, so nothing says what it was made "
                "from; remove the folder and run again"
            )
        remedy = f"restore these, or remove {work.path} and start again"
        refuse_changes(record, before, now, free, remedy=remedy)
    write_atomic(record, seal(now))
