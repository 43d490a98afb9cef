"""A rendered world in memory, for pre-training the laptop's frozen parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reca.core.images import decode, to_tensor
from reca.data.readers.parquet import ParquetDataset
from reca.toyworld.scenes import Scene


@dataclass(frozen=True)
class Pictures:
    """Images [n, 3, H, W] in [-1, 1], their scenes, and the hash of both."""

    pixels: Tensor
    scenes: Sequence[Scene]
    fingerprint: str


def read_world(directory: Path) -> Pictures:
    """Decode all images of a rendered world into memory; worlds are small by design."""
    dataset = ParquetDataset(directory)
    samples = [dataset[index] for index in range(len(dataset))]
    pixels = torch.stack([to_tensor(decode(s.image or b"", name=s.id)) for s in samples])
    scenes = [Scene.from_json(json.loads(s.extra["scene"])) for s in samples]
    return Pictures(pixels, scenes, dataset.fingerprint())
