"""Readers of image sets behind one face: `open_dataset(kind, path)` gives samples by index."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reca.data.samples import Dataset, Sample

__all__ = ["KINDS", "Dataset", "Sample", "check_options", "open_dataset"]

KINDS = ("world", "folder", "tar", "parquet", "llava")


def open_dataset(kind: str, path: str | Path, **options: Any) -> Dataset:
    """Open the data set at `path`, a file or a folder.

    Args:
        kind: one of `KINDS`; the laptop `world` is written as parquet and read as such.
        path: where the files are.
        options: the reader's own, see its class (column names, limits, the image root).

    Raises:
        ValueError: unknown kind or option, no such path, or files that the reader refuses.
    """
    check_options(kind, options)
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder; fetch or build the data set first")
    return _reader(kind)(Path(path), **options)


def check_options(kind: str, options: Iterable[str]) -> None:
    """ValueError for an option that the reader of this kind does not have."""
    allowed = list(inspect.signature(_reader(kind)).parameters)[1:]
    for name in options:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise ValueError(f"data kind {kind}: unknown option {name!r}; allowed: {known}")


def _reader(kind: str) -> Callable[..., Dataset]:
    if kind in ("parquet", "world"):
        from reca.data.parquet import ParquetDataset

        return ParquetDataset
    if kind == "tar":
        from reca.data.tar import TarDataset

        return TarDataset
    if kind == "folder":
        from reca.data.folder import FolderDataset

        return FolderDataset
    if kind == "llava":
        from reca.data.llava import LlavaDataset

        return LlavaDataset
    raise ValueError(f"unknown data kind {kind!r}; allowed: {', '.join(KINDS)}")
