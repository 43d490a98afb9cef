"""Weight files: everything is written as safetensors; pickles of others are opened by one guarded function.

Every defect of a file (malformed, truncated, wrong names or shapes) is a ValueError that names the
file. A manifest maps a tensor's name to its shape and dtype.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reca.core.artifacts import sha256_file
from reca.core.atomic import replacing
from reca.core.documents import fields, read_json, texts
from reca.core.finite import check_weights, number_kind

Manifest = Mapping[str, tuple[tuple[int, ...], str]]
Pin = str | Mapping[str, str]
"""The sha256 of a file or, for a checkpoint of several pickles, that of each by name."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SAFE_PICKLES = Version("2.10")  # in older versions `weights_only` pickles can corrupt memory
_SHOWN = 4  # names of each kind shown in an error message
_INDEX = ".safetensors.index.json"
_PICKLE_INDEX = ".bin.index.json"

_log = logging.getLogger(__name__)


# ---- reading -----------------------------------------------------------------------------------
def load_foreign(
    path: str | Path,
    sha256: str | None = None,
    *,
    allow_unpinned: bool = False,
    inside: str | None = None,
    wrappers: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Read a pickled checkpoint (`pytorch_model.bin`) as a flat dict of CPU tensors.

    The only function that opens a pickle: the hash is checked before the bytes are parsed, and only
    tensors are constructed from them. `inside` is the key of the state dict in a file that stores
    other values as well; `wrappers` are keys that may contain it. ValueError if no hash is given
    (unless `allow_unpinned`), for a wrong hash, and for any content but a flat dict of tensors.
    """
    content = _opened(Path(path), sha256, allow_unpinned)
    if inside is not None and isinstance(content, dict):
        content = content.get(inside)
    return _flat_tensors(Path(path), _unwrapped(content, wrappers))


def load_foreign_beside(
    path: str | Path, sha256: str | None, inside: str, beside: str
) -> tuple[dict[str, Tensor], Any]:
    """As `load_foreign` with `inside`, and also the file's value under `beside` (None if absent)."""
    content = _opened(Path(path), sha256, False)
    extra = content.get(beside) if isinstance(content, dict) else None
    tensors = content.get(inside) if isinstance(content, dict) else content
    return _flat_tensors(Path(path), tensors), extra


def _opened(path: Path, sha256: str | None, allow_unpinned: bool) -> Any:
    """The content of a pickle with a known hash: only tensors and plain values."""
    if Version(torch.__version__) < _SAFE_PICKLES:
        raise ValueError(
            f"{path}: torch {torch.__version__} does not open pickles safely; "
            f"install torch >= {_SAFE_PICKLES}"
        )
    if sha256 is None and not allow_unpinned:
        raise ValueError(
            f"{path}: a pickle is opened only if its sha256 is known; pin the source, "
            "or convert the file to safetensors"
        )
    try:
        with open(
            path, "rb"
        ) as file:  # hashed and parsed through one handle, so the file cannot be swapped in between
            _check_hash(path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise ValueError(f"{path}: is not a plain checkpoint of tensors: {_line(error)}") from error


def _unwrapped(content: Any, wrappers: Sequence[str]) -> Any:
    """The content under the checkpoint's single wrapping key, or the content itself."""
    found = [key for key in wrappers if isinstance(content, dict) and key in content]
    return content[found[0]] if len(found) == 1 else content


def _check_hash(path: Path, found: str, pinned: str | None) -> None:
    if pinned is None:
        _log.warning(
            "%s: opened without a pinned hash, as requested; its sha256 is %s", path, found
        )
    elif found != pinned.lower():
        raise ValueError(f"{path}: sha256 is {found}, but {pinned} is pinned; fetch it again")


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _flat_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(
            f"{path}: is not a flat dict of named tensors; extract the state dict first"
        )
    for name, tensor in content.items():
        plain = tensor.layout is torch.strided and not tensor.is_nested
        if not plain or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"{path}: {name} is a sparse, nested, quantized or empty (meta) tensor; save it dense, in floats"
            )
    return dict(content)


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read one safetensors file as CPU tensors; ValueError names a file that cannot be read."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def safetensors_manifest(path: str | Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names, shapes and dtypes of a safetensors file, read from its header."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def weight_map_of(index: Path) -> dict[str, str]:
    """Tensor names and their shards from a Hub index; ValueError for a file that is not an index."""
    try:
        return texts(fields(read_json(index), index, weight_map=dict)["weight_map"], "weight_map")
    except ValueError as error:
        reason = str(error).removeprefix(f"{index}: ")
        raise ValueError(
            f"{index}: is not a safetensors index with a weight_map ({reason})"
        ) from error


def _load_shards(
    index: Path, load: Callable[[Path], dict[str, Tensor]] = load_safetensors
) -> dict[str, Tensor]:
    """Read all shards listed in a Hub index; the index and the shards must agree."""
    weight_map = weight_map_of(index)
    shards = sorted(set(weight_map.values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index}: shard {shard!r} is not a plain file name in this folder")
        tensors |= load(index.parent / shard)
    _complain(index, missing=weight_map.keys() - tensors, unexpected=tensors.keys() - weight_map)
    return tensors


def load_checkpoint(
    path: str | Path,
    sha256: Pin | None = None,
    *,
    allow_unpinned: bool = False,
    wrappers: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Read a checkpoint: a safetensors file, an index of shards, a pickle, or the folder of one.

    `sha256` is that of the file (of the index of safetensors, or of each shard by name for an index of pickles) and is
    checked if given; it is required only for pickles, and `wrappers` applies only to them (see `load_foreign`).
    """
    path = _checkpoint_file(Path(path))
    if path.name.endswith(_PICKLE_INDEX):
        pins = sha256 if isinstance(sha256, Mapping) else {}

        def load(shard: Path) -> dict[str, Tensor]:
            pin = pins.get(shard.name)
            return load_foreign(shard, pin, allow_unpinned=allow_unpinned, wrappers=wrappers)

        return _load_shards(path, load)
    if isinstance(sha256, Mapping):
        sha256 = sha256.get(path.name)
    if sha256 is not None and path.suffix in (".safetensors", ".json"):
        _check_hash(path, _sha256(path), sha256)
    if path.name.endswith(_INDEX):
        return _load_shards(path)
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if path.suffix in PICKLES:
        return load_foreign(path, sha256, allow_unpinned=allow_unpinned, wrappers=wrappers)
    raise ValueError(
        f"{path}: is not a checkpoint; give a .safetensors or .bin file, or its folder"
    )


def _checkpoint_file(path: Path) -> Path:
    """A folder's checkpoint: an index, else a safetensors file, else a pickle; ValueError if ambiguous.

    A safetensors file that is named, but was released in shards, is their index.
    """
    if not path.is_dir():
        index = path.with_name(f"{path.stem}{_INDEX}")
        in_shards = path.suffix == ".safetensors" and not path.exists() and index.is_file()
        return index if in_shards else path
    pickles = (f"*{_PICKLE_INDEX}", *(f"*{suffix}" for suffix in PICKLES))
    for pattern in (f"*{_INDEX}", "*.safetensors", *pickles):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(
                f"{path}: contains {len(found)} checkpoints ({names}); choose one of them"
            )
        if found:
            return found[0]
    raise ValueError(f"{path}: contains no .safetensors and no {', '.join(PICKLES)} file")


# ---- names and shapes ---------------------------------------------------------------------------
def manifest_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    """The manifest of named tensors, with dtypes as in the reference manifests ("float32")."""
    return {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }


def check_manifest(
    where: str | Path,
    found: Manifest,
    expected: Manifest,
    optional: Iterable[str] = (),
    remedy: str = "",
) -> None:
    """Raise one ValueError for missing (unless `optional`) and unexpected names and differing shapes.

    `remedy` is appended to the message. Dtypes need only be of the same kind (`number_kind`): a bfloat16
    copy of a float32 checkpoint is accepted.
    """
    _complain(
        where,
        remedy,
        missing=expected.keys() - found.keys() - set(optional),
        unexpected=found.keys() - expected.keys(),
        different=[
            f"{name} is {_shown(found[name])}, not {_shown(expected[name])}"
            for name in sorted(found.keys() & expected.keys())
            if found[name][0] != expected[name][0]
            or number_kind(found[name][1]) != number_kind(expected[name][1])
        ],
    )


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str | Path,
    optional: Iterable[str] = (),
    remedy: str = "",
) -> None:
    """Copy tensors into a module; all names must match, only `optional` ones may be absent, values must be finite.

    Nothing is copied if a check fails.
    """
    own = module.state_dict()
    check_manifest(where, manifest_of(tensors), manifest_of(own), optional, remedy)
    check_weights(where, tensors.items())
    module.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _complain(where: str | Path, remedy: str = "", **faults: Iterable[str]) -> None:
    found = {kind: sorted(names) for kind, names in faults.items()}
    texts = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in found.items()
        if names
    ]
    if texts:
        listed = "; ".join([*texts, remedy] if remedy else texts)
        raise ValueError(f"{where}: does not fit this model: {listed}")


def _shown(entry: tuple[tuple[int, ...], str]) -> str:
    return f"{entry[1]} {list(entry[0])}"


# ---- writing -----------------------------------------------------------------------------------
def save_safetensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write one safetensors file atomically; equal tensors give equal bytes. All values must be finite."""
    path = Path(path)
    check_weights(path, tensors.items())
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be written: {_line(error)}") from error


def _unreadable(path: str | Path, error: Exception) -> str:
    return f"{path}: is not a readable safetensors file: {_line(error)}; fetch or write it again"


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
