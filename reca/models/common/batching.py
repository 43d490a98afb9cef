"""Batches: padding of ragged rows, noise per row, encoding in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from reca.models.contract import Features

T = TypeVar("T")


def moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor [...] of the host on `device`, without waiting for what the device is doing.

    The driver stages bytes of ordinary memory before the copy returns, so the host may change them at once.
    """
    return tensor.to(device, dtype or tensor.dtype, non_blocking=True)


def padded(
    rows: Sequence[Sequence[int]], fill: int, width: int | None = None, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of ids padded to `width` (default: the longest row), int64 [B, T], and the mask of real ids, bool [B, T]."""
    width = max(map(len, rows)) if width is None else width
    gaps = [[fill] * (width - len(row)) for row in rows]
    both = zip(rows, gaps, strict=True)
    ids = torch.tensor(
        [[*gap, *row] if left else [*row, *gap] for row, gap in both], dtype=torch.long
    ).view(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    places = torch.arange(width)
    return ids, places >= width - lengths if left else places < lengths


def count_labels(rows: Sequence[Sequence[int]], ignore: int = -100) -> int:
    """Number of labels with a loss."""
    return sum(label != ignore for row in rows for label in row)


def row_noise(
    generators: Sequence[torch.Generator],
    sample: Callable[[torch.Generator], Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise [B, ...], row i from `generators[i]` alone (on the CPU): an image does not depend on its batch."""
    return torch.stack([sample(generator) for generator in generators]).to(device)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def encode_in_chunks(
    encode: Callable[[Sequence[T]], Features], items: Sequence[T], size: int
) -> Features:
    """Features of all items, encoding at most `size` at a time."""
    parts = [encode(chunk) for chunk in chunks(items, size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
