"""The last stage of a laptop base model: assemble the frozen parts, then train in phases.

The phases are plain alignment recipes (`reca.align`), run in the order of their names: language first, then sparse
captions for generation together with dense descriptions for understanding, which is the paper's starting point.
Training may also continue from a complete model (`begin`). Family code is in `reca.toyworld.pretrain.<family>`.
"""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from reca.align.trainer import align
from reca.align.training_data import feature_data
from reca.config.recipe import Recipe
from reca.core.artifacts import describe_files, sha256_json, write_atomic
from reca.core.devices import placed
from reca.core.sealed import seal, unseal
from reca.data.prompts import bank
from reca.data.role import USES, Role
from reca.features import build as cache
from reca.features.roles import open_role
from reca.models.checkpoint_io import load_safetensors, save_safetensors
from reca.models.contract import UnifiedModel
from reca.models.registry import load_model, pretraining_module
from reca.toyworld.edits import WORDS
from reca.toyworld.pretrain.binding import Values, bound

if TYPE_CHECKING:
    from reca.config.schema import DataSource, Fit

_log = logging.getLogger(__name__)


class FitPart(Protocol):
    """Trains one frozen part separately and writes it to `out`; returns the last loss."""

    def __call__(
        self,
        network: Mapping[str, Any],
        recipe: Fit,
        data: Path,
        *,
        seed: int,
        work: Path,
        out: Path,
    ) -> float:
        """Train the part, resuming from `work`."""
        ...


class FamilyPretraining(Protocol):
    """The interface of a module `reca.toyworld.pretrain.<family>`."""

    PARTS: Mapping[str, FitPart]
    """Frozen parts that are trained separately, by their names under `pretrain.parts`."""

    assemble: Callable[..., None]
    """assemble(network, prompts=, seed=, parts=, out=) writes a model folder with trained parts, the rest untrained."""

    attention_values: Values
    """The values of words and pictures, for `pretrain.binding`; see `binding.Values`."""


def pretraining_of(family: str) -> FamilyPretraining:
    """The pre-training of a family."""
    return cast("FamilyPretraining", importlib.import_module(pretraining_module(family)))


def pretrain_part(family: str, part: str, *arguments: Any, **places: Any) -> float:
    """Train one part of a family (see `FitPart`); ValueError lists its parts."""
    parts = pretraining_of(family).PARTS
    if part not in parts:
        raise ValueError(f"{family} has no part {part!r}; choose one of: {', '.join(parts)}")
    return parts[part](*arguments, **places)


def pretrain_base(
    family: str,
    network: Mapping[str, Any],
    phases: Mapping[str, Recipe],
    sources: Mapping[str, DataSource],
    *,
    folders: Mapping[str, Path],
    parts: Mapping[str, Path],
    seed: int,
    work: Path,
    out: Path,
    code: str,
    begin: Path | None = None,
    binding: Mapping[str, float] | None = None,
    contrast: float = 0.0,
    answers: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    storage: str = "float32",
    log_every: int = 1,
) -> dict[str, dict[str, float | None]]:
    """Run the phases in the order of their names; writes the base model and its logs to `out`.

    `begin` is a model folder to continue from, instead of `parts`; `binding` has by phase the weight of the term of
    `binding.bound`, and `contrast` is the weight inside it; `answers` has the entry of `sources` and `folders` whose
    questions a phase reads instead of `answer`, `texts` the same for `text`; `storage` is the dtype of the written
    weights; `log_every` thins the step logs beside them. Returns the last losses by phase. Caches and checkpoints are
    in `work`, so a killed run resumes inside its phase.
    """
    start = _start(family, network, parts, begin, seed, work)
    model = placed(load_model(start))
    check_binding(binding := binding or {}, phases)
    values = pretraining_of(family).attention_values
    losses: dict[str, dict[str, float | None]] = {}
    for name in sorted(phases):
        read = phase_data(sources, folders, (answers or {}).get(name), (texts or {}).get(name))
        caches = encoded(model, *read, work / "cache", code)
        data = feature_data(phases[name], *read, caches, seed=seed, ranks=1)
        identity = {"model": sha256_json([name, seed, model.encoder_fingerprint("draw")])}
        with bound(values, model, binding.get(name, 0.0), contrast):
            summary = align(
                model,
                data,
                phases[name],
                seed=seed,
                work_dir=work / "phases" / name,
                log=out / f"{name}.jsonl",
                identity=identity,
            )
        thin(out / f"{name}.jsonl", log_every)
        losses[name] = summary.loss
    model.save(out)
    if storage != "float32":
        rounded(out, getattr(torch, storage))
    return losses


def thin(log: Path, every: int) -> None:
    """Keep the lines of steps `every`, 2 `every`, ... of a step log, and the last one."""
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for step, line in enumerate(lines, 1) if step % every == 0 or step == len(lines)]
    write_atomic(log, b"".join(kept))


def rounded(folder: Path, dtype: torch.dtype) -> None:
    """Store the floating-point tensors of a model folder in `dtype`; ValueError if a value is out of its range."""
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_safetensors(file)
        save_safetensors(
            {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}, file
        )


def _start(
    family: str,
    network: Mapping[str, Any],
    parts: Mapping[str, Path],
    begin: Path | None,
    seed: int,
    work: Path,
) -> Path:
    """The model folder before the first phase, reused from an earlier run if intact, else written again."""
    start, record = work / "start", work / "start.json"
    if record.is_file() and start.is_dir():
        found = unseal(record.read_bytes())
        if found is not None and found["files"] == describe_files(start):
            return start
        _log.warning("%s: damaged; writing it again", start)
    # from an older version, or truncated by an interruption: equal inputs reproduce it
    shutil.rmtree(start, ignore_errors=True)
    write_start(family, network, start, parts=parts, begin=begin, seed=seed)
    write_atomic(record, seal({"files": describe_files(start)}))
    return start


def write_start(
    family: str,
    network: Mapping[str, Any],
    out: Path,
    *,
    parts: Mapping[str, Path],
    begin: Path | None,
    seed: int,
) -> None:
    """Write the model before the first phase to `out`: the one in `begin` extended, or trained `parts` assembled."""
    if begin is not None:
        continued(family, network, begin, seed=seed).save(out)
    else:
        pretraining_of(family).assemble(
            network, prompts=bank("laptop"), seed=seed, parts=parts, out=out
        )


def continued(family: str, network: Mapping[str, Any], begin: Path, *, seed: int) -> UnifiedModel:
    """A complete model extended by the words of edit instructions; ValueError for a family that cannot edit."""
    go_on = getattr(pretraining_of(family), "go_on", None)
    if go_on is None:
        raise ValueError(
            f"pretrain.start is {str(begin)!r}, but {family} cannot continue from a model; set it to null"
        )
    return cast("UnifiedModel", go_on(network, begin, words=WORDS, seed=seed))


def phase_data(
    sources: Mapping[str, DataSource],
    folders: Mapping[str, Path],
    answers: str | None,
    texts: str | None = None,
) -> tuple[dict[str, DataSource], dict[str, Path]]:
    """Sources and folders by role of a phase; `answers` and `texts` are what it reads as `answer` and `text`, if not
    these.
    """
    entries = {role.value: role.value for role in Role}
    entries[Role.ANSWER.value] = answers or Role.ANSWER.value
    entries[Role.TEXT.value] = texts or Role.TEXT.value
    return (
        {role: sources[entry] for role, entry in entries.items() if entry in sources},
        {role: folders[entry] for role, entry in entries.items() if entry in folders},
    )


def check_binding(binding: Mapping[str, float], phases: Iterable[str]) -> None:
    """ValueError for a phase that does not exist."""
    if unknown := sorted(set(binding) - set(phases)):
        raise ValueError(
            f"pretrain.binding names {', '.join(unknown)}, but the phases are {', '.join(sorted(phases))}"
        )


def encoded(
    model: UnifiedModel,
    sources: Mapping[str, DataSource],
    folders: Mapping[str, Path],
    root: Path,
    code: str,
) -> dict[str, Path]:
    """Feature caches by use; named after the encoder's weights, so a phase after training an encoder gets new ones."""
    caches = {}
    for role, use in USES.items():
        if role not in folders:
            continue  # a recipe that needs it raises an error
        # a phase may read other images than the one before
        place = sha256_json([model.encoder_fingerprint(use), str(folders[role])])
        caches[str(use)] = root / f"{use}-{place[:16]}"
        images = open_role(sources[role], folders[role])
        cache.build(model, images, caches[use], use=use, code=code)
    return caches
