"""CPU time to decode JPEGs exactly and with `options.jpeg_side`, and what it changes in the resized images.

    python -m perf.jpeg_side --out docs/results/jpeg_side.json

The pictures are random fields with the spectrum of photographs (amplitude 1/f), in three sizes; all are decoded and
resized to a square, as an encoder's preprocessing does. Differences are in grey levels of 255.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perf import pairs, processor
from reca.core.artifacts import versions, write_json
from reca.core.images import decode, squash

SIZES = ((1024, 1024), (2048, 1536), (4096, 3072))
TARGETS = (256, 512, 1024)
FACTORS = (1, 2)  # jpeg_side over the side of the target
REPEATS = 5
DEVIATION = 50.0  # grey levels within a picture


def photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of three correlated random fields with amplitudes 1/f."""
    width, height = size
    drawn = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    f[0, 0] = np.inf
    fields = np.fft.irfft2(np.fft.rfft2(drawn.normal(size=(4, height, width))) / f, size[::-1])
    channels = 0.9 * fields[:1] + 0.3 * fields[1:]
    channels = 127 + DEVIATION * channels / channels.std()
    image = Image.fromarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def resized(data: bytes, target: int, jpeg_side: int | None) -> Image.Image:
    """Decoded and resized to a square."""
    return squash(decode(data, name="picture", jpeg_side=jpeg_side), target)


def measure(size: tuple[int, int], target: int, factor: int, repeats: int) -> dict[str, Any] | None:
    """Both ways for one size and target; None where nothing is reduced."""
    data, side = photograph(size, seed=0), factor * target
    if min(size) < 2 * side:
        return None
    sides = {
        "exact": partial(resized, data, target, None),
        "reduced": partial(resized, data, target, side),
    }
    pairs.alternating(sides, 1)
    seconds, images = pairs.alternating(sides, repeats)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    exact, reduced = (np.asarray(images[name], dtype=float) for name in sides)
    apart = np.abs(exact - reduced)
    return {
        "picture": list(size),
        "target": target,
        "jpeg_side": side,
        "milliseconds": {name: round(1e3 * found, 2) for name, found in middle.items()},
        "speedup": round(middle["exact"] / middle["reduced"], 2),
        "difference": {"mean": round(float(apart.mean()), 2), "largest": float(apart.max())},
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    settings = [
        found
        for size in SIZES
        for target in TARGETS
        for factor in FACTORS
        if (found := measure(size, target, factor, REPEATS))
    ]
    result = {
        "machine": {"processor": processor(), "system": platform.system(), "threads": 1},
        "versions": versions(),
        "clock": "CPU seconds of the process, medians of alternating repeats",
        "settings": settings,
    }
    write_json(given.out, result)
    for one in settings:
        print(one)


if __name__ == "__main__":
    main()
