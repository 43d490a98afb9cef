"""Decoding limits (ANCHORS D3, S4) and the exact resize rules (golden `preprocess`)."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from reca.core import images
from reca.core.image_colours import on_white
from reca.core.images import decode
from reca.core.unreadable import UnreadableImage

GOLDEN = Path(
    os.environ.get("RECA_REFERENCE_DIR") or Path(__file__).parents[1] / "reference" / "golden"
)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    grid = np.indices((height, width))
    pixels = np.stack([grid[0] * 5, grid[1] * 5, grid.sum(0) * 3], -1).astype(np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + rows + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    squeezed = zlib.compress(b"\0" * (64 << 20), 9)
    return png(4, 4, chunk(b"zTXt", b"Comment\0\0" + squeezed))


def webp_canvas(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sizes
    anim = b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    return b"RIFF" + struct.pack("<I", len(body + anim)) + body + anim


JPEG = encode(gradient(), "JPEG")
PNG = encode(gradient())
WEBP = encode(gradient(), "WEBP", lossless=True)
ZIP = b"PK\x03\x04" + b"\0" * 30
SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
FITS = b"SIMPLE  =                    T" + b" " * 50 + b"NAXIS1  =            100000000"

REFUSED = {
    "zero bytes": b"",
    "wrong magic": b"\0" * 100,
    "svg renamed": SVG,
    "fits bomb": FITS,
    "html": b"<!doctype html><title>404</title>",
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "truncated png": PNG[: len(PNG) // 2],
    "truncated webp": WEBP[: len(WEBP) // 2],
    "header only": PNG[:20],
    "50k x 50k png": png(50_000, 50_000),
    "10k x 10k png": png(10_000, 10_000),
    "thin but long png": png(100_000, 1),
    "zero width png": png(0, 5),
    "16k webp canvas": webp_canvas(16_384, 16_384),
    "png text bomb": text_bomb(),
    "png + zip": PNG + ZIP,
    "jpeg + zip": JPEG + ZIP,
    "webp + html": WEBP + b"<html><script>1</script>",
    "bad png checksum": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_or_damaged_bytes_are_refused_quickly_and_by_name(case):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UnreadableImage, match=r"shard-3/000017.png") as caught:
        decode(REFUSED[case], name="shard-3/000017.png")
    assert isinstance(caught.value, ValueError)
    assert time.monotonic() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def raw_png(width: int, height: int, depth: int, colour: int, *extra: bytes) -> bytes:
    """A whole PNG of zeros, packed a thousandfold."""
    row = (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8 + 1
    pack = zlib.compressobj(6)
    rows = b"".join(pack.compress(bytes(row)) for _ in range(height)) + pack.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join([header, *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


TOO_LARGE = {
    "8000 png of 74 bytes": lambda: png(8000, 8000),
    "8192 rgba of 16 bits": lambda: png(8192, 8192, depth=16, colour=6),
    "4600 rgb of 16 bits": lambda: png(4600, 4600, depth=16),
    "webp of one colour": lambda: encode(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True),
    "gif of one colour": lambda: encode(Image.new("P", (8000, 8000)), "GIF"),
    "tiff of one colour": lambda: encode(
        Image.new("1", (8000, 8000)), "TIFF", compression="group4"
    ),
    "progressive jpeg": lambda: PROGRESSIVE,
}
# The frame header of a small file says that it is large.
PROGRESSIVE = encode(gradient(), "JPEG", progressive=True, subsampling=0).replace(
    struct.pack(">HH", 30, 40), struct.pack(">HH", 8000, 8000), 1
)


@pytest.mark.parametrize("case", TOO_LARGE)
def test_small_files_that_unpack_to_much_are_refused_from_the_header(case, monkeypatch):
    data = TOO_LARGE[case]()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=r"pixels of [A-Z]+ take \d+ MiB to decode"):
        decode(data, name="a")


LARGE = {
    "palette": lambda: raw_png(6100, 6100, 8, 3, chunk(b"PLTE", bytes(3)), chunk(b"tRNS", b"\0")),
    "webp": lambda: encode(Image.new("RGBA", (4000, 3000)), "WEBP", lossless=True),
    "photograph": lambda: encode(Image.new("RGB", (8660, 5773), "red"), "JPEG"),
    "photograph, turned": lambda: encode(
        Image.new("RGB", (6000, 4000), "red"), "JPEG", exif=turned(6)
    ),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


MEASURE = """
import sys
from reca.core.images import decode
from tests.core.test_images import WEBP
decode(WEBP, name="loads what decoding needs")
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    image = decode(data, name="a")
    print(peak() - before, *image.size)
    del image
"""


def test_the_largest_images_that_are_read_stay_within_200_megabytes(tmp_path):
    paths = [tmp_path / name for name in LARGE]
    for path, make in zip(paths, LARGE.values(), strict=True):
        path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert all(50e6 < kibibytes * 1024 < 200e6 for kibibytes, _, _ in found)
    assert [size for _, *size in found] == [[6100, 6100], [4000, 3000], [4330, 2887], [4000, 6000]]


def test_a_reduced_photograph_is_the_same_picture(monkeypatch):
    image = gradient(100, 100).resize((800, 640))
    data = encode(image, "JPEG", quality=95)
    for megabytes, size in ((4, (800, 640)), (1, (400, 320)), (0.2, (200, 160)), (0.1, (100, 80))):
        monkeypatch.setattr(images, "MAX_BYTES", megabytes * 1e6)
        found = decode(data, name="a")
        assert found.size == size
        difference = np.asarray(found, int) - np.asarray(image.resize(size, Image.Resampling.BOX))
        assert np.abs(difference).mean() < 3


def test_limits_are_arguments():
    assert decode(PNG, name="a", max_pixels=1200).size == (40, 30)
    with pytest.raises(UnreadableImage, match="40 x 30 pixels, at most 1199"):
        decode(PNG, name="a", max_pixels=1199)
    with pytest.raises(UnreadableImage, match="39 on a side"):
        decode(PNG, name="a", max_side=39)


OTHER_FORMATS = {
    "gif": encode(gradient().convert("P"), "GIF"),
    "bmp": encode(gradient(), "BMP"),
    "tiff": encode(gradient(), "TIFF"),
    "tiff, packed": encode(gradient(), "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize(
    "data", [PNG, WEBP, *OTHER_FORMATS.values()], ids=["png", "webp", *OTHER_FORMATS]
)
def test_lossless_formats_are_exact_whatever_the_name(data):
    expected = gradient()
    if data.startswith(b"GIF"):
        expected = expected.convert("P").convert("RGB")
    assert np.array_equal(decode(data, name="ocr_vqa/images/0001.jpg"), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_keep_the_same_limits(name):
    data = OTHER_FORMATS[name]
    for odd in (data + ZIP, data + SVG):
        with pytest.raises(UnreadableImage, match="another document"):
            decode(odd, name="a")
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        decode(data[: len(data) // 2], name="a")
    with pytest.raises(UnreadableImage, match="at most 1199"):
        decode(data, name="a", max_pixels=1199)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_no_flipped_byte_raises_anything_else_or_stores_an_address():
    generator = np.random.default_rng(0)
    for data in (PNG, JPEG, WEBP, *OTHER_FORMATS.values()):
        for _ in range(60):
            odd = bytearray(data)
            odd[int(generator.integers(min(len(odd), 400)))] = int(generator.integers(256))
            try:
                decode(bytes(odd), name="a")
            except UnreadableImage as fault:
                assert "0x" not in fault.reason and "object" not in fault.reason


def test_reasons_are_fixed_words():
    for data in (b"\xff\xd8\xff" + bytes(60), b"GIF89a" + bytes(60), PNG[:60], WEBP[:60]):
        with pytest.raises(UnreadableImage) as caught:
            decode(data, name="a")
        kind = caught.value.reason.split()[-1]
        assert caught.value.reason == f"damaged or truncated {kind}"
        assert kind in images.FORMATS


def test_harmless_bytes_behind_the_image_are_allowed():
    assert decode(JPEG + b"\0" * 64 + b"camera trailer", name="a").size == (40, 30)


def test_a_second_document_inside_a_jpeg_comment_does_not_hide_the_end():
    assert decode(encode(gradient(), "JPEG", comment=b"\xff\xd9"), name="a").size == (40, 30)


def test_every_mode_becomes_rgb():
    image = gradient()
    for mode in ("1", "L", "LA", "P", "RGBA"):
        result = decode(encode(image.convert(mode)), name=mode)
        assert result.mode == "RGB"
        assert np.array_equal(result, image.convert(mode).convert("RGB")), mode


@pytest.mark.parametrize(
    ("jpeg_side", "size"),
    [(None, (400, 300)), (151, (400, 300)), (150, (200, 150)), (75, (100, 75)), (1, (50, 38))],
)
def test_a_jpeg_is_reduced_while_its_short_side_stays(jpeg_side, size):
    picture = Image.radial_gradient("L").resize((400, 300)).convert("RGB")
    jpeg, png = encode(picture, "JPEG", quality=95), encode(picture, "PNG")
    found = decode(jpeg, name="a", jpeg_side=jpeg_side)
    assert found.size == size
    if jpeg_side is None or size == (400, 300):
        assert np.array_equal(found, decode(jpeg, name="a"))
    else:
        exact, reduced = (
            np.asarray(images.squash(one, 32), dtype=int) for one in (decode(jpeg, name="a"), found)
        )
        assert 0 < np.abs(exact - reduced).max() <= 12
    assert decode(png, name="a", jpeg_side=jpeg_side).size == (400, 300)


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (230, 20, 20)).convert("CMYK")
    pixels = np.asarray(decode(encode(red, "JPEG", quality=100), name="cmyk"), dtype=int)
    assert np.abs(pixels - (230, 20, 20)).max() < 12


def test_of_16_bit_samples_the_high_byte_is_kept():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    grey = np.asarray(decode(encode(Image.fromarray(ramp)), name="I;16"))
    assert np.array_equal(grey, np.repeat((ramp >> 8)[..., None], 3, -1))


def test_transparency_is_composited_on_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = [[0, 255], [128, 64]]
    result = np.asarray(decode(encode(Image.fromarray(pixels)), name="rgba"))
    assert result[..., 0].tolist() == [[255, 0], [127, 191]]


DEPTHS = [("L", depth) for depth in (1, 2, 4, 8, 16)] + [("RGB", 8), ("RGB", 16)]


@pytest.mark.parametrize(("mode", "depth"), DEPTHS)
def test_the_colour_that_a_png_declares_clear_becomes_white(mode, depth):
    """Compared at the depth of the file: 16-bit colours that differ in the low byte alone are two."""
    samples = 3 if mode == "RGB" else 1
    clear, other = (300, 301) if depth == 16 else (0, 1)
    bits = "".join(f"{value:0{depth}b}" * samples for value in (clear, other, clear, other))
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    header = struct.pack(">IIBBBBB", 4, 1, depth, 2 if mode == "RGB" else 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"tRNS", struct.pack(">H", clear) * samples)
    data += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    opaque = {1: 255, 2: 85, 4: 17, 8: 1, 16: 1}[depth]
    assert np.asarray(decode(data, name="a"))[0, :, 0].tolist() == [255, opaque, 255, opaque]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_alpha_channel_is_composited(mode):
    layers = Image.new("RGBA", (3, 2), (50, 50, 50, 128))
    via = "LA" if mode == "La" else "RGBA"
    image = layers.convert(via).convert(mode) if mode != "PA" else layers.convert("P").convert("PA")
    if mode == "PA":
        image.putalpha(128)
    red = np.asarray(on_white(image, b""))[..., 0]
    assert np.abs(red.astype(int) - 152).max() <= 2


def test_samples_without_a_stated_range_are_refused():
    for values in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)):
        with pytest.raises(UnreadableImage, match=r"floating-point|more than 16 bits"):
            decode(encode(Image.fromarray(values), "TIFF"), name="a")
    within = np.full((4, 4), 513, np.int32)
    assert decode(encode(Image.fromarray(within), "TIFF"), name="a").getpixel((0, 0)) == (2, 2, 2)
    inverted = encode(Image.fromarray(within.astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    assert decode(inverted, name="a").getpixel((0, 0)) == (253, 253, 253)


def test_palette_transparency_counts_too():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    clear = decode(encode(image, transparency=1), name="p")
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(image), name="p").getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode(data, name="a").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = gradient(32, 16)
    result = decode(encode(stored, "PNG", exif=exif), name="a")
    expected = {
        1: np.asarray(stored),
        2: np.asarray(stored)[:, ::-1],
        3: np.asarray(stored)[::-1, ::-1],
        4: np.asarray(stored)[::-1],
        5: np.asarray(stored).transpose(1, 0, 2),
        6: np.rot90(np.asarray(stored), -1),
        7: np.rot90(np.asarray(stored), 2).transpose(1, 0, 2),
        8: np.rot90(np.asarray(stored)),
    }[orientation]
    assert np.array_equal(result, expected)


def test_a_damaged_exif_block_leaves_the_image_as_stored():
    assert decode(encode(gradient(), "PNG", exif=b"Exif\0\0garbage"), name="a").size == (40, 30)


def test_our_limit_holds_when_another_library_lifts_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImage, match="50000 x 50000"):
        decode(REFUSED["50k x 50k png"], name="a")
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 1 << 20


def test_extreme_shapes_have_a_defined_result():
    assert decode(encode(Image.new("RGB", (1, 1), "red")), name="a").size == (1, 1)
    long = decode(encode(Image.new("RGB", (20_000, 2), "red")), name="a")
    assert long.size == (20_000, 2)
    for image in (long, long.transpose(Image.Transpose.ROTATE_90), Image.new("RGB", (1, 1))):
        assert images.short_side_crop(image, 512).size == (512, 512)
        assert images.squash(image, 512).size == (512, 512)


def test_short_side_crop_rounds_as_torchvision_does():
    # 141 x 90 to 64: long side int(100.27) = 100, crop from round(18.0) = 18; 139 -> 98, 17.
    for width, long, left in ((141, 100, 18), (139, 98, 17), (140, 99, 18)):
        image = gradient(width, 90)
        whole = image.resize((long, 64), Image.Resampling.BICUBIC)
        expected = whole.crop((left, 0, left + 64, 64))
        assert np.array_equal(images.short_side_crop(image, 64), expected)


def test_elongated_images_agree_with_the_rule_away_from_the_border(monkeypatch):
    image = gradient(200, 20)
    exact = np.asarray(images.short_side_crop(image, 40), dtype=int)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    boxed = np.asarray(images.short_side_crop(image, 40), dtype=int)
    assert np.array_equal(exact[:, 8:-8], boxed[:, 8:-8])


def test_tensor_round_trip_and_range():
    torch = pytest.importorskip("torch")
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = images.to_tensor(Image.fromarray(every))
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 16, 16)
    assert tensor.min() == -1 and tensor.max() == 1
    back = np.asarray(images.to_image(tensor), dtype=int)
    assert np.abs(back - every).max() <= 1  # truncation may lose one step, never more
    loud = images.to_image(torch.tensor([-9.0, 9.0, 0.0]).reshape(3, 1, 1))
    assert loud.getpixel((0, 0)) == (0, 255, 127)


def test_to_image_refuses_what_it_cannot_show():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="not finite"):
        images.to_image(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        images.to_image(torch.zeros(2, 3))


GOLDEN_CASES = sorted(GOLDEN.glob("showo/golden/preprocess*.json"))


@pytest.mark.skipif(not GOLDEN_CASES, reason="no Show-o golden data in RECA_REFERENCE_DIR")
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda path: path.stem)
def test_show_o_preprocessing_is_bit_equal(case):
    from safetensors.numpy import load_file

    tensors = load_file(case.with_suffix(".safetensors"))
    size = json.loads(case.read_text())["config"]["R"]
    image = Image.fromarray(tensors["image_u8"])
    squashed = images.to_tensor(images.squash(image, size)).numpy()
    cropped = images.to_tensor(images.short_side_crop(image, size)).numpy()
    assert np.array_equal(squashed, tensors["squash"])
    assert np.array_equal(cropped, tensors["shortside_crop"])
