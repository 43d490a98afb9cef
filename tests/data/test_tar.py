"""Tar shards: random access in place, and every hostile archive is refused (ANCHORS D2, S3)."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from reca.core.unreadable import UnreadableImage, UnreadableText
from reca.data.formats import open_dataset
from reca.data.order import Cursor
from reca.data.readers.tar import EXCLUDED, INDEX_PREFIX
from tests.data.stream import iterate


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def write_shard(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        add(archive, "./", type=tarfile.DIRTYPE)
        for i in range(first, first + count):
            record = {"caption": f"no {i}", "words": f"word {i}", "n": i}
            add(archive, f"./{i:04d}.png", png(i))
            add(archive, f"./{i:04d}.json", json.dumps(record).encode())
            if i % 2:
                add(archive, f"./{i:04d}.txt", f"text {i}\n".encode())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number, first in ((10, 10), (9, 0)):
        write_shard(tmp_path / f"s{number}.tar", first, 10)
    return tmp_path


def test_samples_by_index_in_natural_order_of_shards(shards):
    dataset = open_dataset("tar", shards)
    assert len(dataset) == 20
    for i in (19, 0, 7, 10):
        sample = dataset[i]
        assert sample.id == f"s{9 if i < 10 else 10}/{i:04d}"
        assert sample.image == png(i)
        assert sample.caption == (f"text {i}" if i % 2 else f"no {i}")
        assert sample.extra == {"words": f"word {i}", "n": i}


def test_shards_lie_in_the_folders_of_their_hub(shards):
    flat = [sample.id for sample in map(open_dataset("tar", shards).texts, range(3))]
    assert flat == ["s9/0000", "s9/0001", "s9/0002"]
    for number, folder in ((9, "b"), (10, "a")):
        (shards / folder).mkdir()
        (shards / f"s{number}.tar").rename(shards / folder / "s.tar")  # equal names
    dataset = open_dataset("tar", shards)
    assert len(dataset) == 20
    assert [dataset[index].id for index in (0, 10)] == ["a/s/0010", "b/s/0000"]


def test_the_caption_key_is_an_option(shards):
    sample = open_dataset("tar", shards / "s9.tar", caption="words")[2]
    assert sample.caption == "word 2" and sample.extra == {"caption": "no 2", "n": 2}


def test_shards_can_be_left_out_by_name(shards):
    without = open_dataset("tar", shards, exclude=["*10.tar"])
    assert [without[index].id for index in range(len(without))] == [f"s9/{n:04}" for n in range(10)]
    assert without.left_out == {EXCLUDED: ["s10.tar"]}
    whole = open_dataset("tar", shards)
    assert not whole.left_out and whole.fingerprint() != without.fingerprint()
    (shards / "s10.tar").unlink()
    assert without.fingerprint() == open_dataset("tar", shards).fingerprint()


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["s1*", "geneval*"], r"exclude = 'geneval\*' matches no shard of s9\.tar, s10\.tar"),
        (["*"], "matches all shards"),
        ("s1*", "must be a list, each a text"),
    ],
)
def test_a_pattern_that_leaves_out_nothing_or_everything_is_refused(shards, exclude, message):
    with pytest.raises(ValueError, match=message):
        open_dataset("tar", shards, exclude=exclude)


@pytest.mark.parametrize("cut", [1, 4, 9, 10, 11, 17, 33])
def test_resume_inside_a_shard_with_prefetch(shards, cut):
    dataset = open_dataset("tar", shards)

    def read(cursor: Cursor, count: int) -> list[tuple]:
        return list(itertools.islice(iterate(dataset, cursor, workers=3), count))

    whole = [sample.id for sample, _ in read(Cursor(3), 40)]
    before = read(Cursor(3), cut)
    after = read(before[-1][1], 40 - cut)
    assert [sample.id for sample, _ in before + after] == whole
    assert len(set(whole[:20])) == len(set(whole[20:])) == 20


def test_the_index_is_kept_and_renewed_when_the_shard_changes(shards, monkeypatch):
    first = open_dataset("tar", shards).fingerprint()
    assert (shards / f"{INDEX_PREFIX}s9.tar.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr("reca.data.readers.tar.scan", lambda *_: pytest.fail("scanned a known shard"))
        assert open_dataset("tar", shards).fingerprint() == first
    write_shard(shards / "s9.tar", 50, 10)
    changed = open_dataset("tar", shards)
    assert changed[0].image == png(50)
    assert changed.fingerprint() != first


def test_a_damaged_index_is_made_again(shards):
    first = open_dataset("tar", shards).fingerprint()
    (shards / f"{INDEX_PREFIX}s9.tar.json").write_text('{"members": [')
    assert open_dataset("tar", shards).fingerprint() == first


def test_a_shard_cut_while_open_is_an_unreadable_image(shards):
    dataset = open_dataset("tar", shards / "s9.tar")
    with open(shards / "s9.tar", "r+b") as file:
        file.truncate(9 * 1024)
    with pytest.raises(UnreadableImage, match=r"s9/0009.*shorter than its index"):
        dataset[9]


def sparse_header() -> bytes:
    """A GNU sparse member that claims 10 GB in an archive of a few blocks."""
    member = tarfile.TarInfo("big.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"%011o " % 512  # offset of the one chunk
    header[483:495] = b"%011o " % (10 << 30)  # real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def oversized_header() -> bytes:
    member = tarfile.TarInfo("big.png")
    member.size = 10 << 30
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def member(name: str, data: bytes = b"x", **fields) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: add(archive, name, data, **fields)


HOSTILE = {
    "parent path": (member("../x.png"), "leaves the archive"),
    "hidden parent path": (member("a/../../x.png"), "leaves the archive"),
    "absolute path": (member("/x.png"), "leaves the archive"),
    "backslash": (member("..\\x.png"), "leaves the archive"),
    "symlink": (
        member("x.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "not a plain file",
    ),
    "hardlink": (
        member("x.png", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        "not a plain file",
    ),
    "device": (member("x.png", b"", type=tarfile.CHRTYPE, devmajor=1), "not a plain file"),
    "fifo": (member("x.png", b"", type=tarfile.FIFOTYPE), "not a plain file"),
    "same name": (member("0001.png"), "occurs twice"),
    "same name, other spelling": (member("./0001.png"), "occurs twice"),
    "same key and extension": (member("0001.PNG"), "two members 'png'"),
    "two images of a key": (member("0001.jpg"), "several images"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused(tmp_path, case):
    write, message = HOSTILE[case]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0001.png", png(1))
        write(archive)
    with pytest.raises(ValueError, match=rf"a\.tar.*{message}"):
        open_dataset("tar", tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) in (
        [".tar"],
        [".json", ".json", ".tar"],
    )


@pytest.mark.parametrize("make", [sparse_header, oversized_header])
def test_ten_gigabyte_headers_are_refused(tmp_path, make):
    (tmp_path / "a.tar").write_bytes(make())
    with pytest.raises(ValueError, match=r"a\.tar.*(sparse|claims 10737418240 bytes|damaged)"):
        open_dataset("tar", tmp_path)


def test_member_sizes_are_limited_by_option(shards):
    with pytest.raises(ValueError, match=r"claims \d+ bytes; at most 20 are allowed"):
        open_dataset("tar", shards, max_member_bytes=20)


@pytest.mark.parametrize("keep", [0, 100, 512, 600, 1024 + 512 * 7, -1024 - 9216])
def test_truncated_archives_are_refused(shards, keep):
    whole = (shards / "s9.tar").read_bytes()
    padding = len(whole) - len(whole.rstrip(b"\0"))
    cut = len(whole) - padding if keep < 0 else keep
    (shards / "s9.tar").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"s9\.tar.*(damaged|truncated)"):
        open_dataset("tar", shards)


def test_a_damaged_header_in_the_middle_does_not_end_the_archive(shards):
    whole = bytearray((shards / "s9.tar").read_bytes())
    at = whole.index(b"./0005.png")
    whole[at] ^= 255
    (shards / "s9.tar").write_bytes(whole)
    with pytest.raises(ValueError, match="no end-of-archive marker"):
        open_dataset("tar", shards)


def test_compressed_and_foreign_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        add(archive, "0.png", png(0))
    with pytest.raises(ValueError, match="compress"):
        open_dataset("tar", tmp_path)
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"a\.tar: damaged"):
        open_dataset("tar", tmp_path)


def test_keys_without_image_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.png", png(0))
        add(archive, "meta.json", b"{}")
    dataset = open_dataset("tar", tmp_path)
    assert (len(dataset), dataset.without_image) == (1, 1)


def test_a_damaged_caption_is_an_unreadable_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.png", png(0))
        add(archive, "0.json", b"{")
    with pytest.raises(UnreadableText, match=r"a/0: .*member json: expected a JSON object"):
        open_dataset("tar", tmp_path)[0]
