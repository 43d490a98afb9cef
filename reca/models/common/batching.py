"""Batches: padding of ragged rows, noise per row, encoding in chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from reca.models.common.tokenizer import IGNORE

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.contract import Features

T = TypeVar("T")

LARGE = 256 * 256  # pixels of an image from which a thread costs less than it saves
MOST_THREADS = 8

PINS = frozenset({"cuda"})
"""Types of devices whose copies of pinned memory do not occupy the host."""


def moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor [...] on `device`, from the host without waiting for what the device is doing.

    Nobody may write to the tensor afterwards: a copy of pinned memory may still be under way. It may be dropped:
    PyTorch keeps pinned memory until the copy is done, and the driver stages bytes of ordinary memory.
    """
    # The other way round nobody would wait either, and the host would read what has not arrived.
    from_host = tensor.device.type == "cpu"
    return tensor.to(device, dtype or tensor.dtype, non_blocking=from_host)


def pinned(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A host tensor [...] in memory from which a GPU `device` copies by itself; as it is for other devices.

    It pays for large tensors, in a thread: pinning is a copy. A tensor that `device` already holds is left there.
    """
    if torch.device(device).type not in PINS or tensor.device.type != "cpu":
        return tensor
    return tensor.pin_memory()


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


def with_targets(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The states [M, D] of [B, L, D] that have a target, and these targets [M], on the device of the states.

    `targets` [B, L] are in main memory, where they are chosen without a wait for the device.
    """
    targets = targets.flatten()
    rows = (targets != IGNORE).nonzero().squeeze(1)
    return (
        states.flatten(0, 1)[moved(rows, states.device)],
        moved(targets[rows], states.device),
    )


def row_noise(
    generators: Sequence[torch.Generator],
    sample: Callable[[torch.Generator], Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise [B, ...], row i from `generators[i]` alone (on the CPU): an image does not depend on its batch."""
    return moved(torch.stack([sample(generator) for generator in generators]), device)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def prepare_each(prepare: Callable[[Image], T], images: Sequence[Image]) -> list[T]:
    """`prepare` of every image, in order; of large ones in threads, as resizing releases the interpreter's lock."""
    threads = min(len(images), len(os.sched_getaffinity(0)), MOST_THREADS)
    if threads < 2 or max(image.width * image.height for image in images) < LARGE:
        return [prepare(image) for image in images]
    with ThreadPoolExecutor(threads, thread_name_prefix="reca-prepare") as pool:
        return list(pool.map(prepare, images))


def encode_in_chunks(
    encode: Callable[[Sequence[T]], Features], items: Sequence[T], size: int
) -> Features:
    """Features of all items, encoding at most `size` at a time."""
    parts = [encode(chunk) for chunk in chunks(items, size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
