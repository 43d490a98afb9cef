"""The only list of model families, with one entry each. None is imported before it is used.

A family of this package is a folder `reca/models/<family>/` and an entry here. Any installed package can bring another
one: an entry point of the group `reca.models` names its `Family`. Entry points are read only for a name that is not in
the list here, and configuration reads all entries without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from reca.models.contract import UnifiedModel

GROUP = "reca.models"  # of the entry points with which a package brings a family


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
    """Names of the families of this package that can run."""
    return [name for name, family in FAMILIES.items() if family.module]


def is_runnable(name: str) -> bool:
    """Whether a family can run: one of ours with code, or one of an installed package."""
    return name in runnable() or (name not in FAMILIES and brought(name) is not None)


def editing() -> list[str]:
    """Names of the families of this package that edit images."""
    return [name for name, family in FAMILIES.items() if family.edits]


def find_family(name: str) -> Family:
    """The entry of a family, ours or that of an installed package; ValueError lists what there is."""
    found = FAMILIES.get(name) or brought(name)
    if found is None:
        others = ", ".join(sorted(_entry_points())) or "none is installed"
        raise ValueError(
            f"model family {name!r} is not known; choose one of: {', '.join(runnable())}; of other packages (entry "
            f"point group {GROUP}): {others}; the attribute `family` of a model's class must be one of these names"
        )
    return found


@cache
def brought(name: str) -> Family | None:
    """The family that an installed package brings under this name; None where none does.

    ValueError names the entry point that cannot be loaded, or is not a `Family` of this name with a module.
    """
    point = _entry_points().get(name)
    if point is None:
        return None
    where = f"entry point {point.name} = {point.value} (group {GROUP})"
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: cannot be loaded ({error}); repair or remove it") from error
    if not isinstance(found, Family) or found.name != name or not found.module:
        raise ValueError(
            f"{where}: gives {found!r}; it must be a reca.models.registry.Family with name {name!r} and a module"
        )
    return found


def entry_module(name: str) -> str | None:
    """The module that holds the entry of another package's family; None for ours."""
    return None if name in FAMILIES else _entry_points()[name].module


def brought_config() -> list[Path]:
    """The folders `config/` of the packages that bring families: Hydra groups, laid out as in this repository's."""
    found = []
    for point in _entry_points().values():
        spec = importlib.util.find_spec(point.module.split(".")[0])
        places = list((spec and spec.submodule_search_locations) or ())
        found += [folder for place in places if (folder := Path(place) / "config").is_dir()]
    return found


def _entry_points() -> dict[str, EntryPoint]:
    # Its import takes 0.1 s, which planning our own families does without.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def family_module(family: str) -> str:
    """Module path of a family's contract implementation; imported dynamically, so that code hashes are per family."""
    if not is_runnable(family):
        find_family(family)
        raise ValueError(
            f"model family {family!r} cannot run yet; choose one of: {', '.join(runnable())}"
        )
    return find_family(family).module


def implementation(family: str) -> ModuleType:
    """Import a family's module; ValueError names the `Family` whose module does not exist."""
    name = family_module(family)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # an import inside of the module
        raise ValueError(
            f"Family {family!r} ({entry_module(family) or 'reca.models.registry'}) has module={name!r}, but there is "
            f"no module {error.name!r}; name the one with build(network), and reinstall the package"
        ) from error


def pretraining_module(family: str) -> str:
    """Module path of a family's pre-training; ValueError if it has none."""
    known = [name for name, one in FAMILIES.items() if one.pretraining]
    if family not in known and not (is_runnable(family) and find_family(family).pretraining):
        raise ValueError(
            f"family {family!r} cannot be pre-trained here; choose one of: {', '.join(known)}"
        )
    return find_family(family).pretraining


def build_model(family: str, network: Mapping[str, Any]) -> UnifiedModel:
    """Build an untrained model of `family` from its network section (see `config/model/*.yaml`)."""
    return implementation(family).build(network)


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
