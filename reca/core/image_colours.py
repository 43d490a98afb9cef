"""Any mode of an opened image as RGB on white: one rule for alpha channels and for colours that are declared clear."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from reca.core.image_formats import png_depth

STRIP_PIXELS = 2**17  # converted at a time, so that no second copy of the whole image is made
_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262  # TIFF


class UnknownSamples(ValueError):
    """Samples whose range no file states: what is black and what is white would be a guess."""


def on_white(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded image as RGB; `data` is its file. An opaque RGB image comes back as it is.

    Of 16-bit samples the high byte is kept, as Pillow does for colour. A colour that the file declares clear (tRNS of
    PNG, GIF's index) is compared at the file's own depth.

    Raises:
        UnknownSamples: floating-point samples, or whole numbers beyond 16 bits.
    """
    if image.mode == "F":
        raise UnknownSamples("floating-point samples")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    width, height = image.size
    low = _low_bytes(data) if _has_clear_colour(image, data, depth=16) else None
    white = Image.new("RGB", image.size, "white")
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        part = image.crop(box)
        clear = part.info.pop("transparency", None) if part.mode in _BY_COLOUR else None
        colours, mask = _layers(part, image, clear, data, low.crop(box) if low else None)
        white.paste(colours, box, mask)
    return white


_BY_COLOUR = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "RGB")


def _layers(
    part: Image.Image, image: Image.Image, clear: Any, data: bytes, low: Image.Image | None
) -> tuple[Image.Image, Image.Image | None]:
    """Colours of a strip (RGB), and where they are opaque (None: everywhere)."""
    if part.mode.startswith("I"):
        values = _sixteen_bits(part, image)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        return grey.convert("RGB"), None if clear is None else _mask(values != clear)
    if part.mode in ("1", "L") and clear is not None:
        grey = part.convert("L")
        levels = 2 ** _depth(image, data) - 1
        return grey.convert("RGB"), _mask(np.asarray(grey) != (clear & levels) * 255 // levels)
    if part.mode == "RGB" and clear is not None:
        opaque = _differs(part, [value if low is None else value >> 8 for value in clear])
        return part, _mask(opaque if low is None else opaque | _differs(low, clear))
    if not part.has_transparency_data:
        return part.convert("RGB"), None
    if part.mode == "La":  # greys that are multiplied by their alpha already
        part = part.convert("LA")
    layers = part.convert("RGBA")
    return layers.convert("RGB"), layers.getchannel("A")


def _differs(part: Image.Image, colour: Sequence[int]) -> np.ndarray:
    """Where a strip has another colour than this one, of which the low bytes count: bool [H, W]."""
    red, green, blue = (np.asarray(part)[..., i] != colour[i] & 255 for i in range(3))
    return red | green | blue


def _mask(opaque: np.ndarray) -> Image.Image:
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _sixteen_bits(part: Image.Image, image: Image.Image) -> np.ndarray:
    """Values of a grey strip, from 0 (black) to 65535."""
    values = np.asarray(part).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise UnknownSamples("samples of more than 16 bits")
    tags = getattr(image, "tag_v2", {})
    return 65535 - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values


def _depth(image: Image.Image, data: bytes) -> int:
    return png_depth(data) if image.format == "PNG" else 8


def _has_clear_colour(image: Image.Image, data: bytes, depth: int) -> bool:
    is_png = image.format == "PNG" and image.mode == "RGB"
    return is_png and image.has_transparency_data and png_depth(data) == depth


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of a PNG of 16-bit colours: Pillow unpacks the high ones, of which many colours are equal."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        # Read in the other byte order, the low byte is the high one.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
        return image
