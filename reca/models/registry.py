"""The only list of model families, with one entry each. None is imported before it is used.

A new family is a folder `reca/models/<family>/` and an entry here; configuration reads the entries without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reca.models.contract import UnifiedModel


@dataclass(frozen=True)
class Family:
    """What is known about a family before its code is imported.

    `module`: its implementation of the contract (empty: configuration only, it cannot run yet). `pretraining`: the
    module that trains its laptop base model. `edits`: has the capability `contract.Edits`. `sampler_options`: names of
    its `sampling.options` (None: known only to the family; values are always checked by the family).
    """

    name: str
    title: str
    module: str = ""
    pretraining: str = ""
    edits: bool = False
    sampler_options: tuple[str, ...] | None = None


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "showo",
            "Show-o",
            module="reca.models.showo.model",
            pretraining="reca.toyworld.pretrain.showo",
            sampler_options=("confidence_temperature", "confidence_schedule", "order"),
        ),
        Family(
            "harmon",
            "Harmon",
            module="reca.models.harmon.model",
            pretraining="reca.toyworld.pretrain.harmon",
            sampler_options=("schedule",),
        ),
        Family(
            "openuni",
            "OpenUni",
            module="reca.models.openuni.model",
            pretraining="reca.toyworld.pretrain.openuni",
            sampler_options=("flow_shift",),
        ),
        Family(
            "bagel",
            "BAGEL",
            module="reca.models.bagel.model",
            pretraining="reca.toyworld.pretrain.bagel",
            edits=True,
        ),
        Family(
            "janus",
            "Janus-Pro",
            module="reca.models.janus.model",
            pretraining="reca.toyworld.pretrain.janus",
            sampler_options=(),
        ),
    )
}


def runnable() -> list[str]:
    """Names of the families that can run."""
    return [name for name, family in FAMILIES.items() if family.module]


def editing() -> list[str]:
    """Names of the families that edit images."""
    return [name for name, family in FAMILIES.items() if family.edits]


def family_module(family: str) -> str:
    """Module path of a family's contract implementation; imported dynamically, so that code hashes are per family."""
    if family not in runnable():
        raise ValueError(
            f"model family {family!r} is not known; choose one of: {', '.join(runnable())}"
        )
    return FAMILIES[family].module


def pretraining_module(family: str) -> str:
    """Module path of a family's pre-training; ValueError if it has none."""
    known = [name for name, one in FAMILIES.items() if one.pretraining]
    if family not in known:
        raise ValueError(
            f"family {family!r} cannot be pre-trained here; choose one of: {', '.join(known)}"
        )
    return FAMILIES[family].pretraining


def build_model(family: str, network: Mapping[str, Any]) -> UnifiedModel:
    """Build an untrained model of `family` from its network section (see `config/model/*.yaml`)."""
    return importlib.import_module(family_module(family)).build(network)


def load_model(directory: str | Path) -> UnifiedModel:
    """Load a model folder written by `UnifiedModel.save` (its `reca_model.json` names family and network)."""
    from reca.core.documents import fields, read_json

    path = Path(directory) / "reca_model.json"
    if not path.is_file():
        raise ValueError(
            f"{directory}: no reca_model.json here; give a folder written by `reca base` or `reca align`"
        )
    described = fields(read_json(path), path, family=str, network=dict)
    try:
        model = build_model(described["family"], described["network"])
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{path}: network has a value of the wrong type ({error})") from error
    model.load(Path(directory))
    return model
