"""Images to pixels in [-1, 1] and back, as OpenUni's and Harmon's official code does."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reca.core.finite import NonFinite


def square(image: Image.Image, side: int, offset: int | None) -> Image.Image:
    """The largest square at `offset` pixels along the longer side, resized; None stretches the whole image instead."""
    width, height = image.size
    if offset is not None:
        short = min(width, height)
        left, top = (offset, 0) if width > height else (0, offset)
        image = image.crop((left, top, left + short, top + short))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image as fp32 [3, H, W] in [-1, 1]: 2 u8/255 - 1."""
    # in NumPy, which has no threads of its own: encoders call this from several
    values = np.array(image.convert("RGB")).transpose(2, 0, 1).astype(np.float32, order="C")
    values /= 255
    values *= 2
    values -= 1
    return torch.from_numpy(values)


def to_picture(pixels: Tensor) -> Image.Image:
    """Decoded [3, H, W] as an image: clamp(127.5 x + 128, 0, 255) truncated. ValueError where not finite."""
    values = pixels.detach().float().cpu()
    if not torch.isfinite(values).all():
        raise NonFinite("pixels", [0])
    scaled = (127.5 * values + 128).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).contiguous().numpy())
