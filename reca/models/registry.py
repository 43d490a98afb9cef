"""Model families behind one contract; nothing is imported until a family is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reca.models.contract import UnifiedModel

FAMILIES = ("showo", "harmon", "bagel")


def family_module(family: str) -> str:
    """Module path of a family's contract implementation; the import stays dynamic so code hashes stay per family."""
    if family not in FAMILIES:
        raise ValueError(
            f"model family {family!r} is not known; choose one of: {', '.join(FAMILIES)}"
        )
    return f"reca.models.{family}.model"


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
        raise ValueError(f"{path}: network holds a value of the wrong kind ({error})") from error
    model.load(Path(directory))
    return model
