"""Reads a cache folder, memory-mapped and in any order (written by `reca.features.build`).

`features-00000.safetensors`, ... have one row per distinct image; `index.parquet` maps the items of
the data set to rows; `cache.json` has the key and what it covers; and there are the stage's records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from reca.core import artifacts
from reca.core.documents import fields, rows
from reca.data.order import Visits

if TYPE_CHECKING:
    from reca.models.contract import Features, Use

INDEX, ABOUT = "index.parquet", "cache.json"
COLUMNS = ("id", "position", "image_sha256", "shard", "offset")


class FeatureCache:
    """Rows of frozen features, one per sample with a readable image, in the order of the data set.

    `ids` are the samples' ids; `positions` (int64 [rows]) their positions in the data set, which
    identify captions and conversations even if two samples share an id.
    """

    def __init__(self, directory: Path, about: dict[str, Any], index: dict[str, Any]) -> None:
        self.directory, self.about = directory, about
        self.ids: list[str] = index["id"]
        self.positions = np.asarray(index["position"], np.int64)
        # [rows, 2]: shard and row of the shard, side by side, as both are read for each row.
        self._places = np.stack(
            [np.asarray(index[name], np.int64) for name in ("shard", "offset")], 1
        )
        self._forms = {name: _form(form) for name, form in about["features"].items()}
        self._open = _Shards(directory, about)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def info(self) -> dict[str, Any]:
        """Number of rows, distinct images and bytes, and the encoding time in seconds that the cache saves."""
        run = self.directory / artifacts.RUN
        seconds = (
            artifacts.read_run(self.directory).get("encode_seconds") if run.is_file() else None
        )
        return {
            "rows": len(self),
            "images": sum(len(shard["record"]["kept"]) for shard in self.about["shards"]),
            "bytes": sum(shard["record"]["bytes"] for shard in self.about["shards"]),
            "encode_seconds": seconds,
            "unreadable": len(self.about["unreadable"]),
            "without_image": self.about["without_image"],
        }

    def check_encoder(self, fingerprint: str) -> None:
        """ValueError if a model of another `encoder_fingerprint` made the rows."""
        if self.about["covers"].get("encoder") != fingerprint:
            raise ValueError(
                f"{self.directory}: made by a different encoder than this model's; rebuild the cache"
            )

    @property
    def visits(self) -> Visits | None:
        """The samples of the data set that were read, where these are not all."""
        said = self.about.get("visits")
        return None if said is None else Visits(**said | {"seeds": tuple(said["seeds"])})

    @property
    def size(self) -> int:
        """Number of samples of the data set; of a cache of all, of those with a readable image."""
        return int(self.about.get("size", len(self)))

    def rows(self, indices: Sequence[int]) -> Features:
        """Features of the given rows, in order; integers in the encoder's dtype, floats in the cache's.

        Raises:
            ValueError: a row that the cache does not have, or a damaged shard.
        """
        # Few calls into numpy and torch: for a few small rows they take longer than the copy.
        chosen = np.asarray(indices, np.int64).reshape(-1)
        try:
            places = self._places[chosen].tolist()
        except IndexError:
            places = None
        if places is None or min(chosen.tolist(), default=0) < 0:
            outside = chosen[(chosen < 0) | (chosen >= len(self))]
            raise ValueError(
                f"{self.directory}: no row {outside[0]}; the cache has {len(self)} rows"
            )
        features = {}
        for name, (shape, dtype, bits) in self._forms.items():
            # One copy of each row; fancy indexing takes two, and torch's goes by element. numpy's memory, as it asks
            # for huge pages.
            found = [self._open[shard][name][offset] for shard, offset in places]
            values = np.concatenate(found, dtype=bits) if found else np.empty(0, bits)
            tensor = torch.from_numpy(values.reshape(len(found), *shape))
            features[name] = tensor if tensor.dtype == dtype else tensor.view(dtype)
        return features


class _Shards(dict[int, dict[str, np.ndarray]]):
    """Memory-mapped rows of each shard by feature, [rows, values of a row] each; a shard is opened at first use."""

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        super().__init__()
        self._directory, self._about = directory, about

    def __missing__(self, number: int) -> dict[str, np.ndarray]:
        shard = self._about["shards"][number]
        path, record = self._directory / shard["file"], shard["record"]
        features = map_safetensors(path)
        forms = record["features"]
        count = len(record["kept"])
        if features.keys() != forms.keys() or not all(
            _fits(rows, forms[name], count) for name, rows in features.items()
        ):
            found = {name: _described(rows.dtype, rows.shape) for name, rows in features.items()}
            expected = {
                name: _described(_dtype(form), (count, *form["shape"]))
                for name, form in forms.items()
            }
            raise ValueError(
                f"{path}: contains {found}, the index has {expected}; rebuild the cache"
            )
        self[number] = {name: _bits(rows) for name, rows in features.items()}
        return self[number]


def _dtype(form: Mapping[str, Any]) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, form["dtype"])
    return dtype


def _fits(rows: torch.Tensor, form: Mapping[str, Any], count: int) -> bool:
    """Whether a shard's feature is `count` rows of this form; integers are stored as narrow as their values allow."""
    dtype = _dtype(form)
    narrowed = not (rows.dtype.is_floating_point or dtype.is_floating_point)
    return list(rows.shape) == [count, *form["shape"]] and (rows.dtype == dtype or narrowed)


def _described(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _form(form: dict[str, Any]) -> tuple[list[int], torch.dtype, np.dtype]:
    """Shape and dtype of a feature's rows, and the dtype of their `_bits`."""
    dtype = _dtype(form)
    return form["shape"], dtype, _bits(torch.empty(0, dtype=dtype)).dtype


def _bits(rows: torch.Tensor) -> np.ndarray:
    """The same memory as an array [rows, values of a row]; bf16, which numpy does not have, as 16-bit integers."""
    bits = rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows
    return bits.numpy().reshape(len(rows), math.prod(rows.shape[1:]))


def map_safetensors(path: Path) -> Features:
    """Tensors of a file, backed by a private memory map; ValueError names a file that is not valid safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise ValueError(
            f"{path}: not a valid safetensors file ({problem}); rebuild the cache"
        ) from problem


def open_cache(
    directory: str | Path, *, verify: bool = False, use: Use | None = None
) -> FeatureCache:
    """Open a complete cache; `verify` also hashes every shard, description and index are always hashed.

    Raises:
        ValueError: no complete cache, a damaged file (named), or, if `use` is given, a cache for another one.
    """
    directory = Path(directory)
    if verify:
        artifacts.verify(directory)
    if not verify:
        for name in (ABOUT, INDEX):
            artifacts.verified(directory / name)
    about = fields(
        artifacts.read_json(directory / ABOUT),
        directory / ABOUT,
        key=str,
        covers=dict,
        features=dict,
    )
    for shape in about["features"].values():
        fields(shape, directory / ABOUT, shape=list, dtype=str)
    rows(about.get("shards"), directory / ABOUT, file=str, record=dict)
    if use is not None and (found := about["covers"].get("use")) != use:
        raise ValueError(
            f"{directory}: has images for use {found!r}, not {use!r}; give the cache of this use"
        )
    return FeatureCache(directory, about, _read_index(directory / INDEX))


def _read_index(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(f"{path}: not a valid index ({problem}); rebuild the cache") from problem
    return {name: table.column(name).to_pylist() for name in COLUMNS}
