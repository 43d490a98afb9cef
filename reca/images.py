"""Safe decoding of foreign image files, and the exact resize rules that the model families share.

Bytes from a data set are not trusted: only JPEG, PNG and WebP are parsed, sizes are read from the
header and bounded before a pixel is decoded, and every failure is one exception, `UnreadableImage`,
that names the sample.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reca.finite import NonFinite, rows_of

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "PNG", "WEBP")
# 8192 x 8192: Pillow itself warns only at 1.3 times this and refuses at 2.7 times.
MAX_PIXELS = 2**26
MAX_SIDE = 2**15

_SIGNATURES = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
)
# A second document glued behind the image (a "polyglot"): archives, scripts, markup, PDF.
_SECOND_DOCUMENT = re.compile(
    rb"PK\x03\x04|PK\x05\x06|%PDF-|<\?php|<script|<svg|<html|<!doctype|Rar!\x1a|7z\xbc\xaf",
    re.IGNORECASE,
)
# In JPEG's entropy-coded data FF00 is a stuffed byte and FFD0-FFD7 are restarts; any other FFxx is
# a marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
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


class UnreadableImage(ValueError):
    """An image that is refused; the message names the sample and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: unreadable image: {reason}")
        self.name = name
        self.reason = reason


def decode(
    data: bytes, *, name: str, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """Decode one JPEG, PNG or WebP file to an upright RGB image.

    Animations give their first frame, EXIF orientation is applied, grey, palette and CMYK become
    RGB, of 16-bit samples the high byte is kept, and transparency is composited on white. `name`
    identifies the sample in errors.

    Raises:
        UnreadableImage: empty, truncated, of another format, damaged, carrying a second document
            behind the image, or larger than `max_pixels` or `max_side` (decided from the header).
    """
    kind = _format_of(data, name)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_size(image.size, name, max_pixels, max_side)
            _check_tail(data, kind, name)
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise UnreadableImage(name, f"more than {max_pixels} pixels ({fault})") from fault
    except _PILLOW_FAULTS as fault:
        raise UnreadableImage(name, f"damaged or truncated {kind} ({fault})") from fault


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to (size, size) with PIL's antialiased bicubic filter, ignoring the aspect ratio."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def short_side_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` and cut the central (size, size) square.

    Bicubic and antialiased, the long side truncated to int; rounding is torchvision's. Images so
    elongated that the resized one would pass `MAX_PIXELS` (20000 x 2, say) are resized from their
    central square alone, which differs only in the filter's reach over the square's border.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = (size if side == short else int(size * side / short) for side in (width, height))
    if wide * high > MAX_PIXELS:
        box = _central_box(width, height, short)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return image.resize((wide, high), Image.Resampling.BICUBIC).crop(_central_box(wide, high, size))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Turn an RGB image into a float32 tensor [3, H, W] in [-1, 1]: (u8 / 255 - 0.5) / 0.5."""
    import torch

    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # [H, W, 3]
    return pixels.permute(2, 0, 1).contiguous().float().div(255).sub(0.5).div(0.5)


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
    """`to_image` of each; its error names the row."""
    found = []
    for row, tensor in enumerate(tensors):
        with rows_of([row]):
            found.append(to_image(tensor))
    return found


def _format_of(data: bytes, name: str) -> str:
    if not data:
        raise UnreadableImage(name, "zero bytes")
    for kind, signature in _SIGNATURES:
        if signature.match(data):
            return kind
    raise UnreadableImage(name, f"not a JPEG, PNG or WebP file (starts with {data[:8].hex(' ')})")


def _check_size(size: tuple[int, int], name: str, max_pixels: int, max_side: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage(name, f"empty image of {width} x {height} pixels")
    if width * height > max_pixels or max(size) > max_side:
        limits = f"at most {max_pixels} pixels and {max_side} on a side are allowed"
        raise UnreadableImage(name, f"{width} x {height} pixels, {limits}")


def _check_tail(data: bytes, kind: str, name: str) -> None:
    """Refuse a second document behind the image; padding and camera trailers stay allowed."""
    end = {"PNG": _png_end, "JPEG": _jpeg_end, "WEBP": _webp_end}[kind](data)
    found = _SECOND_DOCUMENT.search(data, end)
    if found:
        raise UnreadableImage(
            name, f"another document ({found.group()!r}) follows the {kind} image"
        )


def _png_end(data: bytes) -> int:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND":
            break
    return min(at, len(data))


def _jpeg_end(data: bytes) -> int:
    """Offset behind the end-of-image marker; thumbnails inside segments are stepped over."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        at = found.end()
        if found.group() == b"\xff\xd9":
            return at
        if at + 2 > len(data):
            break
        at += struct.unpack_from(">H", data, at)[0]
    return len(data)


def _webp_end(data: bytes) -> int:
    return min(8 + struct.unpack_from("<I", data, 4)[0], len(data))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a block that cannot be parsed says nothing, so the image stays as is."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_FAULTS:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as Pillow does for 16-bit colour.
        high_byte = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high_byte.clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    white = Image.new("RGB", layers.size, "white")
    white.paste(layers, mask=layers.getchannel("A"))
    return white


def _central_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size
