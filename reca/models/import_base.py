"""Writes the model folder that every arm starts from, from any source of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from reca.core.artifacts import MANIFEST, read_json, read_manifest, verify
from reca.core.documents import fields
from reca.models.checkpoint_io import PICKLES, Pin
from reca.models.registry import build_model

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
        network: the configuration's network. Weights are loaded strictly into it, so the two cannot
            disagree.
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
        model.load(folder)
    else:
        files = getattr(model, "companion_files", {})
        given = {role: _inside(path, files.get(role)) for role, path in (parts or {}).items()}
        hashes = {role: found for role, path in given.items() if (found := _pickle_hash(path))}
        cast("FromParts", model).load_parts(given, sha256=hashes, allow_unpinned=allow_unpinned)
    model.save(out)


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
