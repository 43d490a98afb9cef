"""Sets of pictures: equal bytes, whole or absent, every odd file refused."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reca.core.artifacts import sha256_file
from reca.inference.imageset import Entry, ImageSet, ImageSetWriter, png


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels)


def write(path, container="tar", count=3):
    with ImageSetWriter(path, container) as writer:
        for number in reversed(range(count)):
            writer.add(f"2.5/prompt-{number}", number, picture(number), {"seed": number, "a": "é"})
    return path


@pytest.mark.parametrize("container", ["tar", "folder"])
def test_what_is_read_is_what_was_written(tmp_path, container):
    pictures = ImageSet(write(tmp_path / "set", container))
    assert len(pictures) == 3
    for number in range(3):
        key = f"2.5/prompt-{number}"
        assert (key, number) in pictures
        assert pictures.image(key, number).tobytes() == picture(number).tobytes()
        assert pictures.recipe(key, number) == {"seed": number, "a": "é"}


def test_a_tar_keeps_the_order_it_was_written_in(tmp_path):
    assert [entry.sample for entry in ImageSet(write(tmp_path / "set.tar"))] == [2, 1, 0]


def test_equal_pictures_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a.tar"), write(tmp_path / "b.tar")
    assert sha256_file(first) == sha256_file(second)
    with tarfile.open(first) as tar:
        member = tar.getmembers()[0]
    assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_a_png_holds_pixels_only():
    image, info = picture(0), PngInfo()
    info.add_text("Software", "somebody's machine")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    with Image.open(io.BytesIO(buffer.getvalue())) as tagged:
        tagged.load()
        assert png(tagged) == png(image)


def test_webdataset_names(tmp_path):
    with tarfile.open(write(tmp_path / "set.tar", count=1)) as tar:
        names = tar.getnames()
    assert names == ["2.5/prompt-0/0000.png", "2.5/prompt-0/0000.json"]


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a b", "a//b", "."])
def test_odd_keys_are_refused(tmp_path, key):
    with (
        pytest.raises(ValueError, match="is not a valid key"),
        ImageSetWriter(tmp_path / "s.tar") as writer,
    ):
        writer.add(key, 0, picture(0), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["tar", "folder"])
def test_a_picture_written_twice_is_refused_and_leaves_nothing(tmp_path, container):
    with (
        pytest.raises(ValueError, match=r"a/0000 is written twice"),
        ImageSetWriter(tmp_path / "set", container) as writer,
    ):
        writer.add("a", 0, picture(0), {})
        writer.add("a", 0, picture(1), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["tar", "folder"])
def test_a_new_set_replaces_the_old_one_completely(tmp_path, container):
    write(tmp_path / "set", container, count=3)
    write(tmp_path / "set", container, count=1)
    assert len(ImageSet(tmp_path / "set")) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_names_the_set(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=r"set\.tar: cannot write pictures \(No space left"):
        write(tmp_path / "set.tar")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unexpected_pictures_are_named(tmp_path):
    pictures = ImageSet(write(tmp_path / "set.tar", count=2))
    pictures.check([Entry("2.5/prompt-0", 0), Entry("2.5/prompt-1", 1)])
    with pytest.raises(ValueError, match=r"1 images missing, for instance x/0004"):
        pictures.check([*pictures, Entry("x", 4)])
    with pytest.raises(ValueError, match=r"not expected, for instance 2\.5/prompt-1/0001"):
        pictures.check([Entry("2.5/prompt-0", 0)])
    with pytest.raises(ValueError, match=r"no x/0000\.png"):
        pictures.image("x")


def _tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data, changes in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in changes.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)


GOOD = [("a/0000.png", png(picture(0)), {}), ("a/0000.json", b"{}", {})]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, ("../b/0000.png", b"", {})], "neither an image nor a recipe"),
        ([*GOOD, ("/b/0000.png", b"", {})], "neither an image nor a recipe"),
        ([*GOOD, ("b.sh", b"", {})], "neither an image nor a recipe"),
        ([*GOOD, GOOD[0]], "occurs twice"),
        ([GOOD[0]], "the image or the recipe of .* is missing"),
        (
            [GOOD[0], ("a/0000.json", b"", {"type": tarfile.SYMTYPE, "linkname": "x"})],
            "no plain|not a plain",
        ),
    ],
    ids=["parent", "absolute", "foreign", "twice", "half", "link"],
)
def test_odd_tar_files_are_refused(tmp_path, members, message):
    _tar(tmp_path / "set.tar", members)
    with pytest.raises(ValueError, match=message):
        ImageSet(tmp_path / "set.tar")


def test_damage_is_named(tmp_path):
    path = write(tmp_path / "set.tar", count=1)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(ValueError, match=r"set\.tar: 2\.5/prompt-0/0000: unreadable image"):
        ImageSet(path).image("2.5/prompt-0", 0)
    path.write_bytes(whole.replace(b'"seed"', b'"seed '))
    with pytest.raises(ValueError, match=r"0000\.json is damaged"):
        ImageSet(path).recipe("2.5/prompt-0", 0)
    path.write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"set\.tar"):
        ImageSet(path)
    with pytest.raises(ValueError, match="run `reca sample` first"):
        ImageSet(tmp_path / "none")


def test_reading_needs_no_torch(tmp_path):
    path = write(tmp_path / "set.tar")
    code = (
        "import sys; from reca.inference.imageset import ImageSet; "
        f"ImageSet({str(path)!r}).image('2.5/prompt-0', 0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_recipes_are_json_lines(tmp_path):
    write(tmp_path / "set", "folder", count=1)
    text = (tmp_path / "set" / "2.5" / "prompt-0" / "0000.json").read_text()
    assert json.loads(text)["seed"] == 0
    assert text.endswith("\n")
