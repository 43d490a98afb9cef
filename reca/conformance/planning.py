"""Checks of what planning and the cache know of a model: its entry, and the fingerprint of its encoders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from reca.conformance.subject import Subject, close, demand
from reca.core.documents import read_json
from reca.core.fingerprints import installed
from reca.models.contract import Edits, UnifiedModel
from reca.models.import_base import DESCRIPTION
from reca.models.registry import build_model, entry_module, find_family

HEAVY = ("torch", "transformers")  # seconds of every `snakemake -n`
MOST_PARAMETERS = 50_000_000  # of a model that is built again for each field of its network


def entry(subject: Subject) -> None:
    """The registry has an entry for the family that names its code and abilities and is imported without torch."""
    model = subject.model
    found = find_family(model.family)
    demand(
        found.edits == isinstance(model, Edits),
        f"the entry of family {model.family!r} has edits={found.edits}, but isinstance(model, contract.Edits) is "
        f"{isinstance(model, Edits)}; change the entry, or the methods",
        model,
        "encode",
    )
    demand(
        installed().source(found.module) is not None,
        f"there is no source file for module {found.module!r} of the entry, so stages cannot record its code; install "
        "the package unzipped",
        model,
        "encode",
    )
    module = entry_module(model.family)
    heavy = [] if module is None else _imports(module)
    demand(
        not heavy,
        f"importing {module}, which holds the entry, imports {', '.join(heavy)}, and every plan reads entries; import "
        f"it in {found.module} alone",
        model,
        "encode",
    )


def _imports(module: str) -> list[str]:
    """Which of `HEAVY` a new process has after importing a module."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    places = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=places, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def fingerprint_covers_encode(subject: Subject) -> None:
    """The fingerprint is stable, and it changes with weights, sizes and options that change a row."""
    for use in subject.uses:
        model = subject.fresh()
        before, rows = model.encoder_fingerprint(use), subject.features[use]
        demand(
            before == model.encoder_fingerprint(use) == subject.model.encoder_fingerprint(use),
            f"encoder_fingerprint({use!r}) differs between two calls",
            model,
            "encoder_fingerprint",
        )
        trained = set(model.trainable_parameters())
        for kind in ("frozen", "trained"):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if (name in trained) == (kind == "trained"):
                        weight.mul_(1.5).add_(0.01)
            changed = model.encode(subject.images, use)
            same = all(close(changed[name], rows[name]) for name in rows)
            demand(
                same or model.encoder_fingerprint(use) != before,
                f"{kind} weights changed the rows of encode(images, {use!r}), but not encoder_fingerprint({use!r}): a "
                "stale cache would be used",
                model,
                "encoder_fingerprint",
            )
    # The subject may be of a class derived from what the family builds; its methods are the ones checked.
    own = type(subject.model)
    for field, model in _rebuilt(subject.model):
        for use in subject.uses:
            if own.encoder_fingerprint(model, use) == subject.model.encoder_fingerprint(use):
                demand(
                    _same_rows(subject, model, use),
                    f"another {field} changes the rows of encode(images, {use!r}), but not "
                    f"encoder_fingerprint({use!r}): a stale cache would be used",
                    model,
                    "encoder_fingerprint",
                )


def _same_rows(subject: Subject, model: UnifiedModel, use: Any) -> bool:
    """Whether a model encodes as the subject does; also where it cannot encode, so that no cache would be written."""
    try:
        found = type(subject.model).encode(model, subject.images, use)
    except Exception:  # of a combination of sizes that nobody would configure
        return True
    rows = subject.features[use]
    return found.keys() == rows.keys() and all(close(found[name], rows[name]) for name in rows)


def _rebuilt(model: UnifiedModel) -> Iterator[tuple[str, UnifiedModel]]:
    """Models of the same weights, each with another value of one field of `network` or `network.options`."""
    if sum(weight.numel() for weight in model.parameters()) > MOST_PARAMETERS:
        return
    with TemporaryDirectory(prefix="reca-conformance-") as folder:
        model.save(Path(folder))
        network = read_json(Path(folder) / DESCRIPTION)["network"]
    own = model.state_dict()
    for field, other in _varied(network):
        try:
            with torch.random.fork_rng(devices=[]):
                built = build_model(model.family, other)
        except Exception:  # what does not fit the other fields
            continue
        fitting = {
            name: own[name]
            for name, tensor in built.state_dict().items()
            if name in own and own[name].shape == tensor.shape
        }
        built.load_state_dict(fitting, strict=False)
        # The family may build another class than the one checked.
        if isinstance(model, type(built)):
            yield field, built.eval()


def _varied(network: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    options = network.get("options") or {}
    for name, value in network.items():
        for other in _others(value):
            yield f"network.{name} ({other} for {value})", {**network, name: other}
    for name, value in options.items():
        for other in _others(value):
            changed = {**network, "options": {**options, name: other}}
            yield f"network.options.{name} ({other} for {value})", changed


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value] + [value // 2] * (value > 1)
    return [value / 2] if isinstance(value, float) and value else []
