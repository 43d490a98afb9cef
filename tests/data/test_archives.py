"""LLaVA's images read from archives as their origins pack them; nothing is unpacked."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from reca.core.unreadable import UnreadableImage
from reca.data.formats import open_dataset
from reca.data.readers.archives import ImageFolder

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."}]


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), grey).save(buffer, "PNG")
    return buffer.getvalue()


def grey(data: bytes | None) -> int:
    return Image.open(io.BytesIO(data or b"")).getpixel((0, 0))


def pack_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def pack_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def mix(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A conversation file and its companions as the origins pack them: zips, a tar, loose files."""
    names = [
        "coco/train2017/1.png",
        "vg/VG_100K_2/2.png",
        "ocr_vqa/images/3.png",
        "gqa/images/4.png",
    ]
    folders = {first: tmp_path / f"images-{first}" for first in ("coco", "vg", "ocr_vqa", "gqa")}
    for folder in folders.values():
        folder.mkdir()
    pack_zip(folders["coco"] / "train2017.zip", {"train2017/1.png": png(1)})
    pack_zip(folders["vg"] / "VG_100K.zip", {"VG_100K/9.png": png(9)})
    pack_zip(folders["vg"] / "VG_100K_2.zip", {"VG_100K_2/2.png": png(2)})
    pack_tar(folders["ocr_vqa"] / "ocr_vqa.tar", {"images/3.png": png(3)})
    (folders["gqa"] / "images").mkdir()
    (folders["gqa"] / "images" / "4.png").write_bytes(png(4))
    records = [{"id": name, "image": name, "conversations": TURNS} for name in names]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    return tmp_path / "mix.json", {first: str(folder) for first, folder in folders.items()}


def test_images_are_read_where_they_lie(mix):
    file, folders = mix
    dataset = open_dataset("llava", file, images=folders)
    assert [grey(dataset[index].image) for index in range(4)] == [1, 2, 3, 4]
    assert not list(file.parent.rglob("train2017/*")), "nothing may be unpacked"
    assert dataset.texts(2).image is None
    assert dataset.texts(2).conversations == dataset[2].conversations == [[("What?", "A dot.")]]


def test_the_fingerprint_covers_the_archives(mix):
    file, folders = mix
    first = open_dataset("llava", file, images=folders).fingerprint()
    assert open_dataset("llava", file, images=folders).fingerprint() == first
    pack_zip(Path(folders["coco"]) / "train2017.zip", {"train2017/1.png": png(100)})
    assert open_dataset("llava", file, images=folders).fingerprint() != first


def test_what_is_missing_is_counted_not_fatal(mix):
    file, folders = mix
    partly = {first: folder for first, folder in folders.items() if first != "vg"}
    with pytest.raises(UnreadableImage, match="no folder is given for the images of 'vg'"):
        open_dataset("llava", file, images=partly)[1]
    pack_zip(Path(folders["coco"]) / "train2017.zip", {"train2017/other.png": png(1)})
    with pytest.raises(UnreadableImage, match="No such file"):
        open_dataset("llava", file, images=folders)[0]


def test_damaged_members_are_unreadable_images(tmp_path):
    path = tmp_path / "a.zip"
    pack_zip(path, {"1.png": png(1), "2.png": png(2)})
    data = bytearray(path.read_bytes())
    at = data.index(b"1.png") + len("1.png") + 5
    data[at] ^= 0xFF
    path.write_bytes(data)
    folder = ImageFolder(tmp_path)
    with pytest.raises(UnreadableImage, match=r"s: .*1\.png"):
        folder.read("1.png", "s")
    assert grey(folder.read("2.png", "s")) == 2


def test_a_tar_truncated_after_indexing_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    pack_tar(path, {"1.png": png(1)})
    folder = ImageFolder(tmp_path)
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(UnreadableImage, match="shorter than its index says"):
        folder.read("1.png", "s")


@pytest.mark.parametrize("pack", [pack_zip, pack_tar], ids=["zip", "tar"])
def test_whole_archives_that_are_wrong_are_refused(tmp_path, pack):
    name = f"a.{pack.__name__[-3:]}"
    pack(tmp_path / name, {"1.png": png(1)})
    pack_zip(tmp_path / "b.zip", {"1.png": png(1)})
    with pytest.raises(ValueError, match=r"'1\.png' is also in another archive"):
        ImageFolder(tmp_path)
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"b\.zip: damaged zip"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="no such folder of images"):
        ImageFolder(tmp_path / "none")


def test_what_a_zip_holds_beyond_its_claim_is_not_unpacked(tmp_path):
    """A header may claim a thousand bytes where gigabytes are packed, with the sum of the first ones."""
    path, whole = tmp_path / "a.zip", bytes(64 << 20)
    pack_zip(path, {"1.png": whole})
    data, claim = path.read_bytes(), 1000
    for old, new in ((len(whole), claim), (zlib.crc32(whole), zlib.crc32(whole[:claim]))):
        data = data.replace(old.to_bytes(4, "little"), new.to_bytes(4, "little"))
    path.write_bytes(data)
    folder = ImageFolder(tmp_path)
    tracemalloc.start()
    assert folder.read("1.png", "s") == whole[:claim]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_zip_packed_otherwise_is_an_unreadable_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("1.png", png(1))
    with pytest.raises(UnreadableImage, match="packed by method 14; pack it by deflate"):
        ImageFolder(tmp_path).read("1.png", "s")


def test_a_zip_bomb_is_not_inflated(tmp_path):
    pack_zip(tmp_path / "a.zip", {"big.png": bytes(1 << 20)})
    with pytest.raises(UnreadableImage, match="claims 1048576 bytes; at most 1024"):
        ImageFolder(tmp_path, max_member_bytes=1024).read("big.png", "s")
