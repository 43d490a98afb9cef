"""Loads checkpoints too large for a second copy: shard by shard, tensor by tensor, into a module on `meta`.

Names and shapes are checked from the file headers before any value is read. Then each tensor is memory-mapped and
replaces the module's own, so host memory holds every weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from reca.core.finite import check_weights
from reca.models.checkpoint_io import (
    check_manifest,
    manifest_of,
    safetensors_manifest,
    weight_map_of,
)

_INDEX = ".safetensors.index.json"


def shards_of(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint: a file, an index, or the folder of either; ValueError otherwise."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f"*{_INDEX}")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(
                f"{path}: must contain one safetensors checkpoint, found {names}; choose one"
            )
        path = found[0]
    if path.name.endswith(_INDEX):
        return _indexed(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"{path}: is not a safetensors file; convert the checkpoint or choose another"
        )
    return [path]


def _indexed(index: Path) -> list[Path]:
    names = sorted(set(weight_map_of(index).values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: shard {name!r} is not a plain file name in this folder")
    return [index.parent / name for name in names]


def shard_manifest(shard: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names, shapes and dtypes of a safetensors file, with dtypes as torch names them."""
    return {
        name: (shape, _KINDS.get(kind, kind))
        for name, (shape, kind) in safetensors_manifest(shard).items()
    }


def assign_strictly(
    module: nn.Module,
    path: str | Path,
    *,
    convert: Callable[[str, Tensor], tuple[str, Tensor]] = lambda name, tensor: (name, tensor),
    dtype: Callable[[str], torch.dtype | None] = lambda name: None,
    expected: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
) -> None:
    """Replace a module's tensors with a checkpoint's, strictly; the module may be on `meta`.

    Args:
        module: its parameters and buffers are replaced, one by one; `requires_grad` stays as it is.
        path: see `shards_of`.
        convert: maps an official (name, tensor) to ours.
        dtype: the dtype for a weight of this name (ours); None keeps the file's, without a copy.
        expected: official names and shapes; None if they are the module's own.

    Raises:
        ValueError: names that are missing, unexpected or of another shape, before anything is changed; a weight that
            is not finite, which leaves the module half filled.
    """
    shards = shards_of(path)
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for shard in shards:
        found |= shard_manifest(shard)
    check_manifest(path, found, expected or manifest_of(module.state_dict()))
    for shard in shards:
        for official, tensor in _tensors(shard):
            check_weights(shard, [(official, tensor)])
            name, value = convert(official, tensor)
            target_dtype = dtype(name)
            _assign(module, name, value if target_dtype is None else value.to(target_dtype))


_KINDS = {  # safetensors' names of dtypes
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def _tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
        return
    own = owner._parameters[leaf]
    assert own is not None, f"{name} was checked to be there"
    learns = own.requires_grad and value.is_floating_point()
    owner._parameters[leaf] = nn.Parameter(value, requires_grad=learns)
