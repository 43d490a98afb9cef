"""Safe decoding of foreign image files, and the exact resize rules that the model families share.

Bytes from a data set are not trusted: six formats are parsed, by content and not by name; sizes and the
memory that decoding takes are bounded before a pixel is decoded, and every failure is one exception,
`UnreadableImage`, that names the sample in fixed words.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reca.core.finite import NonFinite, rows_of
from reca.core.image_colours import UnknownSamples, on_white
from reca.core.image_formats import (
    FORMATS,
    SUFFIXES,
    decoding_bytes,
    end_of,
    format_of,
    unpacked_bytes,
)
from reca.core.unreadable import UnreadableImage

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "UnreadableImage",
    "decode",
    "original_of",
    "short_side_crop",
    "squash",
    "to_image",
    "to_tensor",
]

# 8192 x 8192: Pillow itself warns only at 1.3 times this and refuses at 2.7 times.
MAX_PIXELS = 2**26
MAX_SIDE = 2**15
# Memory for decoding one image: a JPEG of 48 million pixels, RGBA of 24 million, WebP of 12 million.
MAX_BYTES = 184 * 2**20
# A second's work: an RGB PNG of 39 million pixels, or one of 14 million with alpha and 16 bits.
MAX_UNPACKED = 112 * 2**20
_REDUCTIONS = (2, 4, 8)  # of JPEG, while it is decoded

# A second document glued to the end of the image (a "polyglot"): archives, scripts, markup, PDF.
_SECOND_DOCUMENT = re.compile(
    rb"PK\x03\x04|PK\x05\x06|%PDF-|<\?php|<script|<svg|<html|<!doctype|Rar!\x1a|7z\xbc\xaf",
    re.IGNORECASE,
)
# What Pillow raises on hostile or damaged bytes. The warning is here because a caller may turn it
# into an error.
_PILLOW_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


def decode(
    data: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    jpeg_side: int | None = None,
) -> Image.Image:
    """Decode one JPEG, PNG, WebP, GIF, BMP or TIFF file to an upright RGB image.

    The format is that of the content, whatever the name. Animations give their first frame, TIFF its first page; EXIF
    orientation is applied, grey, palette and CMYK become RGB, of 16-bit samples the high byte is kept, and transparency
    is composited on white. A JPEG that would take more than `MAX_BYTES` is decoded at a half, a quarter or an eighth
    of its size, and so is, with `jpeg_side`, one whose short side stays at least that long. `name` identifies the
    sample in errors.

    Raises:
        UnreadableImage: empty, truncated, of another format, damaged, with a second document after the image, with
            samples of more than 16 bits, larger than `max_pixels` or `max_side`, or (no JPEG) in need of more than
            `MAX_BYTES`; sizes are decided from the header.
    """
    kind = _format_of(data, name)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_size(image.size, name, max_pixels, max_side)
            _check_tail(data, kind, name)
            _bound(image, data, kind, name, jpeg_side)
            image.load()
            orientation = _orientation(image)  # PNG may state it after the pixels
            _check_memory(image, data, kind, name, orientation in _UPRIGHT)
            picture = on_white(image, data)
            if kind == "WEBP" and picture is image:  # which keeps its canvases
                picture = image.copy()
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise UnreadableImage(name, f"more than {max_pixels} pixels") from fault
    except UnknownSamples as fault:
        raise UnreadableImage(name, f"{kind} with {fault}") from fault
    except _PILLOW_FAULTS as fault:
        # Not Pillow's words: they name addresses in memory, and a cache keeps the reason.
        raise UnreadableImage(name, f"damaged or truncated {kind}") from fault
    del image  # its pixels, before they are copied once more
    return _upright(picture, orientation)


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to (size, size) with PIL's antialiased bicubic filter, ignoring the aspect ratio."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def original_of(data: bytes, *, name: str) -> Image.Image:
    """The central square of an image file: what reconstructions are made from and compared with.

    Families stretch, crop or pad other shapes, each its own way; of a square all draw the same.
    """
    return central_square(decode(data, name=name))


def central_square(image: Image.Image) -> Image.Image:
    """The central square of an image; the image itself if it is square."""
    if image.width == image.height:
        return image
    return image.crop(_central_box(*image.size, min(image.size), math.floor))


def short_side_crop(
    image: Image.Image, size: int, rounding: Callable[[float], int] = round
) -> Image.Image:
    """Resize the short side to `size` and cut the central (size, size) square.

    Bicubic and antialiased, the long side truncated to int; `rounding` of the square's corner is torchvision's, or
    `math.floor` as transformers' image processors do. Images so
    elongated that the resized one would pass `MAX_PIXELS` (20000 x 2, say) are resized from their
    central square alone, which differs only in the filter's reach over the square's border.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = (size if side == short else int(size * side / short) for side in (width, height))
    if wide * high > MAX_PIXELS:
        box = _central_box(width, height, short, rounding)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    box = _central_box(wide, high, size, rounding)
    return image.resize((wide, high), Image.Resampling.BICUBIC).crop(box)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Turn an RGB image into a float32 tensor [3, H, W] in [-1, 1]: (u8 / 255 - 0.5) / 0.5."""
    import torch

    # in NumPy, which has no threads of its own: encoders call this from several
    pixels = np.array(image.convert("RGB")).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= 255
    pixels -= 0.5
    pixels /= 0.5
    return torch.from_numpy(pixels)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Turn a tensor [3, H, W] in [-1, 1] into an RGB image.

    Pixels are clamp((x + 1) / 2, 0, 1) * 255, truncated to uint8.

    Raises:
        ValueError: another shape, or (NonFinite) values that are not finite, which the cast would hide as black.
    """
    import torch

    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"to_image expects a tensor [3, H, W], got {list(tensor.shape)}")
    values = tensor.detach().float().cpu()
    if not torch.isfinite(values).all():
        raise NonFinite("pixels", [0])
    pixels = ((values + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def to_images(tensors: Iterable[torch.Tensor]) -> list[Image.Image]:
    """`to_image` of each [3, H, W] tensor; its error names the row."""
    found = []
    for row, tensor in enumerate(tensors):
        with rows_of([row]):
            found.append(to_image(tensor))
    return found


def _format_of(data: bytes, name: str) -> str:
    if not data:
        raise UnreadableImage(name, "zero bytes")
    kind = format_of(data)
    if kind is None:
        known = "JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise UnreadableImage(name, f"not a {known} file (starts with {data[:8].hex(' ')})")
    return kind


def _check_size(size: tuple[int, int], name: str, max_pixels: int, max_side: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage(name, f"empty image of {width} x {height} pixels")
    if width * height > max_pixels or max(size) > max_side:
        limits = f"at most {max_pixels} pixels and {max_side} on a side are allowed"
        raise UnreadableImage(name, f"{width} x {height} pixels, {limits}")


def _check_tail(data: bytes, kind: str, name: str) -> None:
    """Refuse a second document after the image; padding and camera trailers stay allowed."""
    found = _SECOND_DOCUMENT.search(data, end_of(data, kind))
    if found:
        raise UnreadableImage(
            name, f"another document ({found.group()!r}) follows the {kind} image"
        )


def _bound(
    image: Image.Image, data: bytes, kind: str, name: str, jpeg_side: int | None = None
) -> None:
    """Demand `MAX_BYTES` of an image that is not loaded yet: JPEG is reduced to it, any other format refused.

    A JPEG is reduced further while its short side stays at least `jpeg_side`.
    """
    # Asked for EXIF that it has not met yet, a PNG is loaded to its end.
    turned = (kind != "PNG" or "exif" in image.info) and _orientation(image) in _UPRIGHT
    if kind == "JPEG":
        most = min(image.size) // jpeg_side if jpeg_side else 1
        least = max((reduction for reduction in _REDUCTIONS if reduction <= most), default=1)
        for reduction in (1, *_REDUCTIONS):
            needed = decoding_bytes(image, data, kind, turned, reduction)
            if reduction >= least and needed <= MAX_BYTES:
                if reduction > 1:
                    image.draft(None, (image.width // reduction, image.height // reduction))
                return
    _check_memory(image, data, kind, name, turned)


def _check_memory(image: Image.Image, data: bytes, kind: str, name: str, turned: bool) -> None:
    needed, unpacked = decoding_bytes(image, data, kind, turned), unpacked_bytes(image, data, kind)
    if needed > MAX_BYTES or unpacked > MAX_UNPACKED:
        width, height = image.size
        reason = f"{width} x {height} pixels of {kind} take {needed >> 20} MiB to decode"
        limits = f"at most {MAX_BYTES >> 20} ({MAX_UNPACKED >> 20} of them packed) are allowed"
        raise UnreadableImage(name, f"{reason}, {limits}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a block that cannot be parsed says nothing, so the image stays as is."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_FAULTS:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _central_box(
    width: int, height: int, size: int, rounding: Callable[[float], int]
) -> tuple[int, int, int, int]:
    left, top = rounding((width - size) / 2), rounding((height - size) / 2)
    return left, top, left + size, top + size
