"""What an image file is, by its content: its format, where it ends, and what decoding it takes.

Nothing here decodes a pixel: a file that is refused is refused before it costs anything.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")

_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    # Two letters alone would be any text that begins so: the four reserved bytes are 0.
    "BMP": re.compile(rb"BM....\0\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
}
# In JPEG's entropy-coded data FF00 is a stuffed byte and FFD0-FFD7 are restarts; any other FFxx is
# a marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_SCAN = 0xDA
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_DATA = {273: 279, 324: 325, 513: 514}  # offsets of strips, tiles, a JPEG: tag of their sizes
_TIFF_ENTRIES = 2**16
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def format_of(data: bytes) -> str | None:
    """The format of a file, whatever its name says; None for one that is not read."""
    return next((kind for kind, mark in _SIGNATURES.items() if mark.match(data)), None)


def end_of(data: bytes, kind: str) -> int:
    """Offset after the image; at most the length of the file."""
    ends = {
        "PNG": _png_end,
        "JPEG": _jpeg_end,
        "WEBP": _webp_end,
        "GIF": _gif_end,
        "BMP": _bmp_end,
        "TIFF": _tiff_end,
    }
    try:
        return min(ends[kind](data), len(data))
    except (struct.error, IndexError):  # cut within a header: all there is belongs to the image
        return len(data)


def png_depth(data: bytes) -> int:
    """Bits per sample of a PNG file (1, 2, 4, 8 or 16)."""
    return data[24]


def decoding_bytes(
    image: Image.Image, data: bytes, kind: str, turned: bool, reduction: int = 1
) -> int:
    """Memory that `reca.core.images.decode` takes at its peak for an opened file, in bytes (measured with Pillow 13).

    `turned`: whether the image will be rotated afterwards; `reduction`: of both sides, while a JPEG is decoded.
    """
    width, height = image.size
    pixels = -(-width // reduction) * -(-height // reduction)
    if kind == "WEBP":  # two canvases, the frame, and the image
        return 16 * pixels
    stored = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    opaque = image.mode == "RGB" and not image.has_transparency_data
    total = pixels * (stored + (0 if opaque and not turned else 4))
    if kind == "PNG" and not opaque and image.mode == "RGB" and png_depth(data) == 16:
        total += 4 * pixels  # the low bytes
    if kind == "JPEG":
        total += _jpeg_coefficients(data)
    if kind == "TIFF":
        total += _tiff_buffer(image)
    return total


def unpacked_bytes(image: Image.Image, data: bytes, kind: str) -> int:
    """Bytes that the compression of a PNG holds, which is what its decoding takes time for; 0 for other formats."""
    if kind != "PNG":
        return 0
    bits = png_depth(data) * _PNG_SAMPLES.get(data[25], 4)
    twice = bits == 48 and image.has_transparency_data  # low bytes and high bytes
    return (image.width * bits + 7) // 8 * image.height * (2 if twice else 1)


# ---- PNG, WebP -----------------------------------------------------------------------------------
def _png_end(data: bytes) -> int:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND":
            break
    return at


def _webp_end(data: bytes) -> int:
    return 8 + int(struct.unpack_from("<I", data, 4)[0])


# ---- JPEG ----------------------------------------------------------------------------------------
def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, offset after it) of every segment; those inside of others are stepped over."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found.group()[1], found.end()
        if marker == 0xD9 or at + 2 > len(data):
            yield marker, at, at
            return
        start, at = at + 2, at + int(struct.unpack_from(">H", data, at)[0])
        yield marker, start, at


def _jpeg_end(data: bytes) -> int:
    for marker, _, after in _jpeg_segments(data):
        if marker == 0xD9:
            return after
    return len(data)


def _jpeg_coefficients(data: bytes) -> int:
    """Bytes of the coefficients of the whole image, which libjpeg keeps where it comes in several scans."""
    size, components, several = 0, 0, False
    for marker, start, _ in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            _, height, width, components = struct.unpack_from(">BHHB", data, start)
            factors = [divmod(data[start + 7 + 3 * i], 16) for i in range(components)]
            widest, highest = (max((f[axis] for f in factors), default=1) or 1 for axis in (0, 1))
            share = sum(wide * high for wide, high in factors) / (widest * highest)
            size, several = int(2 * width * height * share), marker in _JPEG_PROGRESSIVE
        if marker == _JPEG_SCAN:
            return size if several or data[start] < components else 0
    return 0


# ---- GIF, BMP ------------------------------------------------------------------------------------
def _gif_end(data: bytes) -> int:
    at = 13 + _gif_colours(data[10])
    while at < len(data):
        block = data[at]
        if block == 0x3B:
            return at + 1
        if block == 0x2C:
            at += 11 + _gif_colours(data[at + 9])
        elif block == 0x21:
            at += 2
        else:
            return at
        while data[at]:
            at += 1 + data[at]
        at += 1
    return at


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0


def _bmp_end(data: bytes) -> int:
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = size = 0
    else:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    if compression in (1, 2):  # run lengths
        return int(start + size)
    return int(start + (abs(width) * bits + 31) // 32 * 4 * abs(height))


# ---- TIFF ----------------------------------------------------------------------------------------
def _tiff_end(data: bytes) -> int:
    """The largest offset that any directory of the file points to."""
    order = "<" if data[:1] == b"I" else ">"
    end, at, entries = 8, int(struct.unpack_from(order + "I", data, 4)[0]), 0
    while at and entries < _TIFF_ENTRIES:
        count = struct.unpack_from(order + "H", data, at)[0]
        entries += count + 1
        found: dict[int, tuple[int, ...]] = {}
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, values, after = _tiff_entry(data, order, place)
            found[tag], end = values, max(end, after)
        for starts, sizes in _TIFF_DATA.items():
            parts = zip(found.get(starts, ()), found.get(sizes, ()), strict=False)
            end = max([end, *(start + size for start, size in parts)])
        end = max(end, at + 2 + 12 * count + 4)
        at = struct.unpack_from(order + "I", data, at + 2 + 12 * count)[0]
    return end


def _tiff_entry(data: bytes, order: str, place: int) -> tuple[int, tuple[int, ...], int]:
    """(tag, its values where they are offsets or sizes, the end of what it points to)."""
    tag, kind, count, offset = struct.unpack_from(order + "HHII", data, place)
    size = count * _TIFF_TYPE_BYTES.get(kind, 1)
    start = place + 8 if size <= 4 else offset
    values: tuple[int, ...] = ()
    if kind in (3, 4) and tag in {*_TIFF_DATA, *_TIFF_DATA.values()}:
        values = struct.unpack_from(f"{order}{count}{'H' if kind == 3 else 'I'}", data, start)
    return tag, values, start + size


def _tiff_buffer(image: Image.Image) -> int:
    """Bytes of the strip or tile that libtiff unpacks at once."""
    tags = getattr(image, "tag_v2", {})
    width, height = image.size
    across = tags.get(322, width)
    down = tags.get(323, min(tags.get(278, height), height))
    bits = sum(tags.get(258, (1,))) * (1 if 258 in tags else tags.get(277, 1))
    return int(across * down * bits // 8)
