"""Writes the model folder that every arm starts from, from any source of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from reca.core.artifacts import MANIFEST, read_json, read_manifest, verify
from reca.core.documents import fields
from reca.models.checkpoint_io import PICKLES, Pin
from reca.models.registry import build_model

if TYPE_CHECKING:
    from reca.models.contract import UnifiedModel

DESCRIPTION = "reca_model.json"


class FromParts(Protocol):
    """A model that can be assembled from released files."""

    def load_parts(
        self, parts: Mapping[str, Path], *, sha256: Mapping[str, Pin], allow_unpinned: bool
    ) -> None:
        """Load each part strictly from its file or folder."""
        ...


def make_base(
    family: str,
    network: Mapping[str, Any],
    out: Path,
    *,
    folder: Path | None = None,
    parts: Mapping[str, Path] | None = None,
    allow_unpinned: bool = False,
) -> None:
    """Write a model folder to `out`: from a model folder, or from a released checkpoint and its companions.

    Args:
        family: name of the model family.
        network: the configuration's network. Weights are loaded strictly into it, and outside of `options` it must
            be the network that a model folder was saved with.
        out: the folder to write.
        folder: a model folder, shipped or pre-trained; its hashes are checked if it has a manifest.
        parts: released files or folders by role (`weights` and those that the family names). A pickle
            is opened only if the download recorded its sha256.
        allow_unpinned: also open pickles without a recorded hash.

    Raises:
        ValueError: files that are missing, damaged, of another family or do not fit the network.
    """
    model = build_model(family, network)
    if folder is not None:
        _check_folder(folder, family)
        check_network(folder, network, model)
        model.load(folder)
    else:
        files = getattr(model, "companion_files", {})
        given = {role: _inside(path, files.get(role)) for role, path in (parts or {}).items()}
        hashes = {role: found for role, path in given.items() if (found := _pickle_hash(path))}
        cast("FromParts", model).load_parts(given, sha256=hashes, allow_unpinned=allow_unpinned)
    model.save(out)


def check_network(folder: Path, network: Mapping[str, Any], model: UnifiedModel) -> None:
    """ValueError where a configured network is not the one that a model folder was saved with.

    Sizes that change no weight (of images, say) load without an error, so loading alone does not tell. `options` may
    differ: they are what an experiment changes. `model`: the model of `network`, whose defaults count, too.
    """
    config, path = getattr(model, "config", None), folder / DESCRIPTION
    if is_dataclass(config) and not isinstance(config, type):
        network = json.loads(json.dumps(asdict(config)))  # lists in place of tuples, as in the file
    saved = fields(read_json(path), path, network=dict)["network"]
    plain = {name: value for name, value in network.items() if name != "options"}
    for name, own, other in _differences(plain, saved, "network"):
        raise ValueError(
            f"{path}: {name} is {other!r}, but {own!r} in the configuration; set {name} to {other!r} there, or name "
            "the folder of another model in weights.path"
        )


def _differences(
    own: Mapping[str, Any], saved: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Any, Any]]:
    """Key path and both values of what differs; a key of one of them alone is a newer or older default."""
    for name in (name for name in own if name in saved):
        one, other = own[name], saved[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{path}.{name}")
        elif one != other:
            yield f"{path}.{name}", one, other


def _inside(part: Path, file: str | None) -> Path:
    """The file that a family uses from a download with several files, if the download has it."""
    return part / file if file is not None and (part / file).is_file() else part


def _check_folder(folder: Path, family: str) -> None:
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder}: no {DESCRIPTION} here; give a complete model folder")
    if (folder / MANIFEST).is_file():
        verify(folder)
    found = fields(read_json(folder / DESCRIPTION), folder / DESCRIPTION, family=str)["family"]
    if found != family:
        raise ValueError(
            f"{folder}: contains a model of family {found!r}, but {family!r} is configured"
        )


def _pickle_hash(part: Path) -> Pin | None:
    """The sha256 that the download recorded for the one pickle that `part` is or holds, or for each shard by name."""
    folder = part if part.is_dir() else part.parent
    if not (folder / MANIFEST).is_file():
        return None
    outputs = read_manifest(folder)["outputs"]
    names = sorted(outputs) if part.is_dir() else [part.name]
    pickles = [name for name in names if name in outputs and Path(name).suffix in PICKLES]
    if not pickles or any(name.endswith(".safetensors") for name in names):
        return None
    hashes: dict[str, str] = {name: outputs[name]["sha256"] for name in pickles}
    return hashes[pickles[0]] if len(pickles) == 1 else hashes
