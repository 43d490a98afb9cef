"""The interface to all readers of image sets: `open_dataset(kind, path)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from reca.core.structure import build
from reca.data.dataset import MAX_UNREADABLE, Dataset, Sample

__all__ = [
    "KINDS",
    "Dataset",
    "Sample",
    "check_options",
    "jpeg_side",
    "max_unreadable",
    "open_dataset",
]

KINDS = ("world", "folder", "tar", "parquet", "llava")
LIMIT, JPEG_SIDE = "max_unreadable", "jpeg_side"
SHARED = (LIMIT, JPEG_SIDE)  # options of all kinds


def open_dataset(kind: str, path: str | Path, **options: Any) -> Dataset:
    """Open the data set at `path`, a file or a folder.

    Args:
        kind: one of `KINDS`; the laptop `world` is stored as parquet and read as such.
        path: location of the files.
        options: those of the reader's class (column names, limits, the image root), and `max_unreadable` and
            `jpeg_side` (see the functions), which the caller enforces.

    Raises:
        ValueError: unknown kind or option, no such path, or files that the reader rejects.
    """
    check_options(kind, options)
    max_unreadable(options)
    jpeg_side(options)
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder; fetch or build the data set first")
    own = {name: value for name, value in options.items() if name not in SHARED}
    return _reader(kind)(Path(path), **own)


def max_unreadable(options: Mapping[str, Any]) -> float:
    """The share of samples that may be unreadable (images or texts), from a data set's options."""
    value = options.get(LIMIT, MAX_UNREADABLE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{LIMIT} = {value!r}: must be a number from 0 to 1")
    return float(value)


def jpeg_side(options: Mapping[str, Any]) -> int | None:
    """The short side in pixels down to which JPEGs are decoded at a part of their size; None decodes them exactly."""
    value = options.get(JPEG_SIDE)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{JPEG_SIDE} = {value!r}: must be a whole number of pixels, 1 or more")
    return value


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the reader of this kind does not have, or of a type that it does not take."""
    reader = _reader(kind)
    allowed = [*list(inspect.signature(reader).parameters)[1:], *SHARED]
    hints = get_type_hints(reader.__init__, include_extras=True)
    for name, value in options.items():
        if name not in allowed:
            known = ", ".join(allowed)
            raise ValueError(f"data kind {kind}: unknown option {name!r}; allowed: {known}")
        if name not in SHARED:
            build(hints[name], _plain(value), name)


def _plain(value: Any) -> Any:
    """An option as a file would say it: paths are texts there."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


def _reader(kind: str) -> Callable[..., Dataset]:
    if kind in ("parquet", "world"):
        from reca.data.readers.parquet import ParquetDataset

        return ParquetDataset
    if kind == "tar":
        from reca.data.readers.tar import TarDataset

        return TarDataset
    if kind == "folder":
        from reca.data.readers.folder import FolderDataset

        return FolderDataset
    if kind == "llava":
        from reca.data.readers.llava import LlavaDataset

        return LlavaDataset
    raise ValueError(f"unknown data kind {kind!r}; allowed: {', '.join(KINDS)}")
