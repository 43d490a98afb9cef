"""CLIP's vision tower, which reads images for Show-o's CLIP variant: never trained here, always loaded.

Parameters have the names of transformers' `CLIPVisionModel`, and results are equal (tests/models/test_transformers.py).
Source: docs/reference/showo.md 1.2. Letters: B images, S pixels of a side, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reca.core import images as pictures
from reca.models.common.batching import prepare_each
from reca.models.common.vision import VisionEncoder
from reca.models.showo.config import TowerConfig

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_EPSILON = 1e-5


class _Embeddings(nn.Module):
    """A class token and patches, each with its learned position."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] -> [B, 1 + P, D]."""
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class ClipTower(nn.Module):
    """A CLIP vision tower under transformers' names."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_size = config.image_size
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, _EPSILON)  # released under this name
        self.encoder = VisionEncoder(
            width,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            hidden_act=config.hidden_act,
            epsilon=_EPSILON,
        )
        self.post_layernorm = nn.LayerNorm(width, _EPSILON)  # of the class token; not used here

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches after the last but one layer, [B, P, D], of pixels [B, 3, S, S] (showo.md 1.2)."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"CLIP takes {self.image_size} x {self.image_size} pixels, not {list(pixels.shape[-2:])}"
            )
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)), layers=-1)[:, 1:]


def crops(images: Sequence[Image], side: int) -> list[Tensor]:
    """CLIP's preparation for reading: short side, central square, mean and deviation; each [3, side, side]."""
    return prepare_each(
        lambda one: _normalised(pictures.short_side_crop(one.convert("RGB"), side, math.floor)),
        images,
    )


def _normalised(image: Image) -> Tensor:
    """An RGB image as [3, H, W], shifted and scaled by colour."""
    pixels = np.asarray(image, np.float64) * (1 / 255)  # rounded once, as transformers does
    mean, deviation = np.array(MEAN, np.float32), np.array(STD, np.float32)
    rows = (pixels.astype(np.float32) - mean) / deviation
    return torch.from_numpy(rows).permute(2, 0, 1).contiguous()
