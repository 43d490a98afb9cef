"""Cached rows in random order: bytes per second of `FeatureCache.rows`, and of numpy on the same rows in one file.

    python -m perf.cache_reads --out docs/results/cache_reads.json

The opponent is a plain gather: fancy indexing of one `numpy.memmap` per feature. Both sides read every row once from
the page cache, in micro-batches, in alternating repeats; CPU seconds on one thread. Rows have the form that the
released models cache, and random content.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from perf import pairs
from reca.data.dataset import Sample
from reca.features.build import build
from reca.features.store import FeatureCache
from reca.models.contract import Features, UnifiedModel

REPEATS, SHARD_BYTES = 15, 64 * 2**20
CODES = 8192  # stored as int16
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


@dataclass(frozen=True)
class Setting:
    """What a released model caches for `draw`: shapes of floats and codes of one row, and its recipe's micro-batch."""

    floats: dict[str, tuple[int, ...]]
    codes: dict[str, tuple[int, ...]]
    images: int
    batch: int


SETTINGS = {
    "Show-o CLIP 512": Setting({"understanding": (576, 1024)}, {"target": (1024,)}, 512, 2),
    "BAGEL": Setting(
        {"target": (32, 128, 128), "understanding": (256, 1152)}, {"grid": (2,)}, 384, 8
    ),
    "Harmon": Setting({"target": (32, 32, 16)}, {}, 4096, 48),
    "Show-o VQ 512": Setting({}, {"target": (1024,), "understanding": (256,)}, 8192, 2),
}


class RandomRows:
    """Stands for a model: one random row per image, the same for the same image."""

    family = "random rows"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def encode(self, images: Sequence[Image.Image], use: str) -> Features:
        """Rows of the setting's form, seeded by the first image's colour."""
        drawn = torch.Generator().manual_seed(int.from_bytes(images[0].tobytes()))
        rows: Features = {
            name: torch.rand(len(images), *shape, generator=drawn)
            for name, shape in self.setting.floats.items()
        }
        for name, shape in self.setting.codes.items():
            codes = torch.randint(CODES, (len(images), *shape), generator=drawn)
            rows[name] = codes.to(torch.int16)
        return rows

    def encoder_fingerprint(self, use: str) -> str:
        """The same for all settings, which have folders of their own."""
        return "0" * 64


class Pixels:
    """`count` images of one pixel, all different."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.left_out: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (index % 256, index // 256, 0)).save(buffer, "BMP")
        return Sample(str(index), buffer.getvalue())

    def texts(self, index: int) -> Sample:
        """The id alone."""
        return Sample(str(index))

    def fingerprint(self) -> str:
        """The number of images says all."""
        return str(self.count)


def plain_files(cache: FeatureCache, folder: Path) -> dict[str, np.memmap]:
    """All rows of each feature in one file, mapped; bf16 as 16-bit integers, which numpy has."""
    maps = {}
    for name, rows in cache.rows(range(len(cache))).items():
        bits = rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows
        path = folder / f"{name}.npy"
        np.save(path, bits.numpy())
        maps[name] = np.load(path, mmap_mode="r")
    return maps


def read(rows: Callable[[list[int]], Any], batches: list[list[int]]) -> Any:
    """Read all micro-batches; the last one."""
    for batch in batches:
        found = rows(batch)
    return found


def measure(name: str, setting: Setting | None = None, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of both sides, after one pass that fills the page cache; AssertionError where their rows differ."""
    setting = setting or SETTINGS[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cache = build(
            cast(UnifiedModel, RandomRows(setting)),
            Pixels(setting.images),
            folder / "cache",
            use="draw",
            code="0" * 64,
            dtype="bf16",
            shard_bytes=SHARD_BYTES,
        )
        maps = plain_files(cache, folder)
        order = np.random.default_rng(0).permutation(setting.images).tolist()
        size = setting.batch
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        sides: dict[str, Callable[[], Any]] = {
            "cache": partial(read, cache.rows, batches),
            "gather": partial(read, lambda b: {n: m[b] for n, m in maps.items()}, batches),
        }
        pairs.alternating(sides, 1)
        seconds, last = pairs.alternating(sides, repeats)
        for feature, rows in last["cache"].items():
            bits = rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows
            assert np.array_equal(bits.numpy(), last["gather"][feature]), feature
        row_bytes = sum(rows[0].nbytes for rows in last["cache"].values())
        shards = len(cache.about["shards"])
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    return {
        "model": name,
        "row_bytes": row_bytes,
        "rows": setting.images,
        "rows_per_read": setting.batch,
        "shards": shards,
        "gigabytes_per_second": {
            side: row_bytes * setting.images / found / 1e9 for side, found in middle.items()
        },
        "microseconds_per_read": {
            side: found / len(batches) * 1e6 for side, found in middle.items()
        },
        "speedup": middle["gather"] / middle["cache"],
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    # Freed memory is used again: otherwise the kernel clears fresh pages for either side, ten times a copy's time.
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, 1 << 30)
    what = "cached rows in random order; speedup: over fancy indexing of numpy memory maps"
    sizes = "rows as the released models cache them for draw, in bf16 and int16"
    pairs.write_settings(given.out, what, sizes, SETTINGS, measure)


if __name__ == "__main__":
    main()
