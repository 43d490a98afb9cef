"""Folder, LLaVA and parquet readers, and the policy for corrupt pictures (ANCHORS D3)."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reca.core.images import decode, short_side_crop, squash, to_tensor
from reca.core.unreadable import UnreadableImage
from reca.data.dataset import Corrupt, read_images
from reca.data.formats import open_dataset
from reca.data.order import Visits
from reca.data.readers import parquet as parquet_reader
from reca.data.readers.llava import pair_turns
from reca.features.build import build
from tests.toy_model import CODE, DrawingToy


def png(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def grey(data: bytes | None) -> int:
    assert data is not None
    return decode(data, name="a").getpixel((0, 0))[0]


# ---- folder ----------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (10, 2, 1):
        (tmp_path / f"scene{number}.png").write_bytes(png(number))
    (tmp_path / "scene2.txt").write_text("a red dot\n")
    (tmp_path / "scene10.json").write_text(json.dumps({"caption": "ten", "licence": "CC0"}))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.WEBP").write_bytes(png(77))
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def test_folder_is_in_natural_order_with_captions(folder):
    dataset = open_dataset("folder", folder)
    samples = [dataset[i] for i in range(len(dataset))]
    assert [s.id for s in samples] == ["deep/a.WEBP", "scene1.png", "scene2.png", "scene10.png"]
    assert [s.caption for s in samples] == [None, None, "a red dot", "ten"]
    assert samples[3].extra == {"licence": "CC0"}
    assert [grey(s.image) for s in samples] == [77, 1, 2, 10]
    assert [path.name for path in dataset.ignored] == ["notes.md"]


def test_folder_fingerprint_follows_content_names_and_captions(folder):
    first = open_dataset("folder", folder).fingerprint()
    assert open_dataset("folder", folder).fingerprint() == first
    (folder / "notes.md").write_text("still not read")
    assert open_dataset("folder", folder).fingerprint() == first
    seen = {first}
    for change in (
        lambda: (folder / "scene1.png").write_bytes(png(200)),
        lambda: (folder / "scene1.png").rename(folder / "scene3.png"),
        lambda: (folder / "scene2.txt").write_text("a blue dot"),
        lambda: (folder / "scene2.png").unlink(),
    ):
        change()
        seen.add(open_dataset("folder", folder).fingerprint())
    assert len(seen) == 5


def test_fingerprints_do_not_depend_on_place_or_ledger(folder, tmp_path_factory):
    first = open_dataset("folder", folder).fingerprint()
    copy = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(folder, copy)
    (copy / ".reca-hashes.json").write_text("{ damaged")
    assert open_dataset("folder", copy).fingerprint() == first


def test_a_damaged_sidecar_names_its_file(folder):
    (folder / "scene1.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"scene1\.json: expected a JSON object"):
        open_dataset("folder", folder)[1]


def test_wrong_use_is_explained(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown data kind 'zip'; allowed: world, folder, tar"):
        open_dataset("zip", folder)
    with pytest.raises(ValueError, match="unknown option 'colour'; allowed: caption"):
        open_dataset("folder", folder, colour=1)
    with pytest.raises(ValueError, match="no such file or folder"):
        open_dataset("folder", folder / "missing")
    with pytest.raises(ValueError, match="no image"):
        (tmp_path / "empty").mkdir()
        open_dataset("folder", tmp_path / "empty")


@pytest.fixture
def locked(monkeypatch):
    """A function that makes a folder unreadable, also for root."""
    scandir = os.scandir

    def lock(folder: Path) -> None:
        def refuse(path="."):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return lock


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_a_folder_that_cannot_be_read_is_named(folder, locked, kind):
    table = pa.table({"image": [png(1)]})
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(folder / "scene1.png", "scene1.png")
    pq.write_table(table, folder / "a.parquet")
    assert len(open_dataset(kind, folder))
    locked(folder / "deep")
    with pytest.raises(ValueError, match=r"deep: cannot read this folder \(Permission denied\)"):
        open_dataset(kind, folder)


def test_a_hidden_folder_of_images_may_be_unreadable(folder, locked):
    (folder / ".trash").mkdir()
    locked(folder / ".trash")
    assert len(open_dataset("folder", folder)) == 4


PHOTOGRAPHS = {
    "skimage/data": ("camera.png", "logo.png", "rocket.jpg", "coffee.png"),  # grey, RGBA, odd sizes
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}


def package_folder(name: str) -> Path:
    package, _, folder = name.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent / folder


def test_real_photographs_pass_through_the_folder_reader(tmp_path):
    # Copied as files: importing sklearn.datasets takes ten times as long as the test.
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            shutil.copy(package_folder(package) / name, tmp_path)
    dataset = open_dataset("folder", tmp_path)
    read = {s.id: image for _, s, image in read_images(dataset, range(len(dataset)), workers=2)}
    assert {name: image.size for name, image in read.items()} == {
        "camera.png": (512, 512),
        "china.jpg": (640, 427),
        "coffee.png": (600, 400),
        "flower.jpg": (640, 427),
        "logo.png": (500, 500),
        "rocket.jpg": (640, 427),
    }
    for image in read.values():
        for ready in (squash(image, 64), short_side_crop(image, 64)):
            tensor = to_tensor(ready)
            assert tensor.shape == (3, 64, 64)
            assert tensor.abs().max() <= 1 and tensor.std() > 0.1
    assert np.array_equal(*np.moveaxis(np.asarray(read["camera.png"]), -1, 0)[:2])  # grey
    assert read["logo.png"].getpixel((0, 0)) == (255, 255, 255)  # transparent corner


# ---- corrupt pictures ------------------------------------------------------------------------
@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "13.png").write_bytes(png(13)[:50])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 3])
def test_corrupt_pictures_are_skipped_counted_and_named(damaged, workers):
    dataset = open_dataset("folder", damaged)
    tally = Corrupt(20, 0.1)
    read = list(read_images(dataset, range(20), tally=tally, workers=workers))
    assert [index for index, _, _ in read] == [i for i in range(20) if i not in (7, 13)]
    assert [grey(sample.image) for _, sample, _ in read] == [index for index, _, _ in read]
    assert [name for name, _ in tally.bad] == ["7.png", "13.png"]
    assert tally.describe().startswith("2 of 20 samples unreadable: 7.png (zero bytes); 13.png (")


def test_too_many_corrupt_pictures_stop_the_run_at_the_first_one_too_many(damaged):
    read = []
    with pytest.raises(ValueError, match=r"2 of 20 samples unreadable: 7\.png.*13\.png.*5\.00%"):
        for index, _, _ in read_images(
            open_dataset("folder", damaged), range(20), max_bad_fraction=0.05
        ):
            read.append(index)
    assert read == [i for i in range(13) if i != 7]


def test_by_default_one_in_a_thousand_may_be_corrupt(damaged):
    with pytest.raises(ValueError, match=r"more than 0\.10%"):
        list(read_images(open_dataset("folder", damaged), range(20)))
    tally = Corrupt(1000, 0.001)
    tally.add(UnreadableImage("a", "zero bytes"))
    with pytest.raises(ValueError, match="2 of 1000"):
        tally.add(UnreadableImage("b", "zero bytes"))


# ---- LLaVA -----------------------------------------------------------------------------------
def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "1.png").write_bytes(png(1))
    records = [
        {"id": "a", "image": "coco/1.png", "conversations": turns("<image>\nWhat?", "A dot.")},
        {"id": "b", "conversations": turns("Hello", "Hi")},
        {
            "id": "c",
            "image": "coco/2.png",
            "conversations": turns("Who?\n<image>", "Me.", "Why?", "So."),
        },
    ]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    return tmp_path


def test_llava_gives_turns_without_the_image_tag(llava):
    dataset = open_dataset("llava", llava)
    assert (len(dataset), dataset.without_image, dataset.malformed) == (2, 1, [])
    sample = dataset[0]
    assert (sample.id, grey(sample.image)) == ("mix/0/a", 1)
    assert sample.conversations == [[("What?", "A dot.")]]
    assert dataset.entries[1][2] == [("Who?", "Me."), ("Why?", "So.")]


def test_llava_counts_a_missing_image_as_corrupt(llava):
    with pytest.raises(UnreadableImage, match=r"mix/2/c.*No such file"):
        open_dataset("llava", llava)[1]
    first = open_dataset("llava", llava).fingerprint()
    (llava / "coco" / "2.png").write_bytes(png(2))
    assert grey(open_dataset("llava", llava)[1].image) == 2
    assert open_dataset("llava", llava).fingerprint() != first


def test_llava_images_may_lie_elsewhere(llava, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("images")
    shutil.move(llava / "coco", elsewhere / "coco")
    dataset = open_dataset("llava", llava / "mix.json", images=str(elsewhere))
    assert grey(dataset[0].image) == 1


MALFORMED = {
    "no conversations": {"image": "a.png"},
    "path leaves": {"image": "../a.png", "conversations": turns("q", "a")},
    "absolute path": {"image": "/etc/passwd", "conversations": turns("q", "a")},
    "no answer": {"image": "a.png", "conversations": turns("q")},
    "two questions": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "q"}, {"from": "human", "value": "r"}],
    },
    "number for text": {"image": "a.png", "conversations": [{"from": "human", "value": 3}] * 2},
    "not a record": "text",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_llava_entries_are_counted_and_limited(llava, case):
    good = json.loads((llava / "mix.json").read_text())
    (llava / "mix.json").write_text(json.dumps([*good, MALFORMED[case]]))
    with pytest.raises(ValueError, match="1 of 4 entries malformed, first mix/3"):
        open_dataset("llava", llava)
    dataset = open_dataset("llava", llava, max_malformed=0.25)
    assert len(dataset) == 2 and len(dataset.malformed) == 1


def test_answers_before_the_first_question_are_dropped():
    lead = [{"from": "gpt", "value": "Hello"}]
    assert pair_turns(lead + turns("q", "a")) == [("q", "a")]


def test_damaged_llava_files_are_named(llava):
    (llava / "mix.json").write_text('[{"id": "a"')
    with pytest.raises(ValueError, match=r"mix\.json: not valid JSON"):
        open_dataset("llava", llava)
    (llava / "mix.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON list"):
        open_dataset("llava", llava)


# ---- parquet ---------------------------------------------------------------------------------
def rows(count: int, first: int = 0) -> list[dict]:
    return [
        {
            "id": f"row-{i}",
            "image": {"bytes": png(i), "path": None},
            "prompt": f"caption {i}",
            "conversations": json.dumps([[["how many ?", str(i)]]]),
            "scene": json.dumps({"n": i}),
        }
        for i in range(first, first + count)
    ]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    for number, (count, first) in {2: (5, 7), 10: (3, 12), 1: (7, 0)}.items():
        table = pa.Table.from_pylist(rows(count, first))
        pq.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=3)
    return tmp_path


def test_parquet_rows_by_index_across_files_and_row_groups(parquet):
    dataset = open_dataset("world", parquet, row_groups=1)
    assert len(dataset) == 15
    for i in (14, 0, 7, 6, 11, 12, 2, 3, -1):
        sample, expected = dataset[i], i % 15
        assert sample.id == f"row-{expected}"
        assert grey(sample.image) == expected
        assert sample.caption == f"caption {expected}"
        assert sample.conversations == [[("how many ?", str(expected))]]
        assert sample.extra == {"scene": json.dumps({"n": expected})}
        assert dataset.texts(i) == replace(sample, image=None)
    assert len(dataset._cache) == 1
    with pytest.raises(IndexError):
        dataset[15]


def test_parquet_is_read_in_parallel_without_mixing_rows(parquet):
    dataset = open_dataset("parquet", parquet, row_groups=1)
    order = list(np.random.default_rng(0).integers(0, 15, 60))
    read = read_images(dataset, order, workers=4)
    assert [image.getpixel((0, 0))[0] for _, _, image in read] == order


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[str, int]]:
    """The row groups that are decoded, in order."""
    found: list[tuple[str, int]] = []
    read_group = parquet_reader._read_group

    def counted(file, group, *rest):
        found.append((file.name, group))
        return read_group(file, group, *rest)

    monkeypatch.setattr(parquet_reader, "_read_group", counted)
    return found


def test_parquet_decodes_a_row_group_once_in_any_order(parquet, decoded):
    order = [7, 0, 4, 6, 1, 3, 5, 2]
    dataset = open_dataset("parquet", parquet)
    for index in order:
        assert dataset[index].image == dataset[index].image
        dataset.texts(index)
    assert len(decoded) == len(
        set(decoded)
    )  # also for captions alone: the images' table holds them
    bounded = open_dataset("parquet", parquet, cache_mib=0)
    for index in range(len(bounded)):
        assert bounded[index].id == f"row-{index}"
        assert len(bounded._cache) <= 4
        assert bounded._cached_bytes == sum(table.nbytes for table in bounded._cache.values())


def test_copies_of_row_groups_give_the_same_rows_in_any_order(parquet, tmp_path, decoded):
    order = [int(at) for at in np.random.default_rng(0).integers(0, 15, 60)]
    expected = [open_dataset("parquet", parquet)[at] for at in order]
    folder = tmp_path / "copies"
    decoded.clear()
    dataset = open_dataset("parquet", parquet, arrow_folder=str(folder))
    assert [dataset.texts(at) for at in order] == [replace(one, image=None) for one in expected]
    assert [dataset[at] for at in order] == expected
    assert len(decoded) == len(set(decoded)) == len(list(folder.iterdir())) == 6
    later = open_dataset("parquet", parquet, arrow_folder=folder)
    assert [later[at] for at in order] == expected
    assert len(decoded) == 6
    assert later.fingerprint() == open_dataset("parquet", parquet).fingerprint()


def test_a_changed_file_is_copied_again_and_a_damaged_copy_is_named(parquet, tmp_path, decoded):
    folder = tmp_path / "copies"
    path = parquet / "train-10.parquet"
    assert grey(open_dataset("parquet", path, arrow_folder=folder)[0].image) == 12
    pq.write_table(pa.Table.from_pylist(rows(3, 40)), path)
    assert grey(open_dataset("parquet", path, arrow_folder=folder)[0].image) == 40
    assert len(decoded) == 2
    for copy in folder.iterdir():
        copy.write_bytes(copy.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"\.arrow: damaged copy of a row group .*; remove it"):
        open_dataset("parquet", path, arrow_folder=folder)[0]


def test_the_folder_of_copies_is_named(parquet):
    with pytest.raises(ValueError, match="arrow_folder = '': must be the path of a folder"):
        open_dataset("parquet", parquet, arrow_folder="")


def test_reading_in_another_order_than_the_files_is_reported_once(parquet, caplog):
    dataset = open_dataset("parquet", parquet, row_groups=1)
    for _ in range(8):
        assert [dataset[at].id for at in range(15)]
    assert not caplog.messages
    for at in [0, 14] * 20:
        dataset[at]
    (line,) = caplog.messages
    assert "6 row groups were decoded 8 times each" in line and "arrow_folder" in line


def test_a_cache_is_built_in_the_order_of_the_row_groups(parquet, tmp_path, decoded):
    visits = Visits(order="own", stream="draw", seeds=(3, 4), samples=6)
    dataset = open_dataset("parquet", parquet, row_groups=1)
    options = {"use": "draw", "code": CODE, "shard_bytes": 100, "visits": visits}
    build(DrawingToy(), dataset, tmp_path / "cache", **options)
    assert len(decoded) <= 2 * len(set(decoded)) + 1  # to hash, for the size of a row, to encode


def test_parquet_with_raw_bytes_other_names_and_no_ids(tmp_path):
    table = pa.table({"jpg": [png(1), png(2), None], "txt": ["one", "two", None], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    dataset = open_dataset("parquet", tmp_path / "a.parquet", image="jpg", caption="txt", extra=[])
    assert [dataset[i].id for i in range(3)] == ["a/0", "a/1", "a/2"]
    assert (grey(dataset[1].image), dataset[1].caption, dataset[1].extra) == (2, "two", {})
    assert dataset[2].image is None
    tally = Corrupt(3, 0.5)
    assert len(list(read_images(dataset, range(3), tally=tally))) == 2
    assert tally.bad == [("a/2", "the sample has no image")]


def test_parquet_without_images_is_a_text_set(tmp_path):
    conversations = [json.dumps([[["q", "a"]], [["r", "b"]]])]
    pq.write_table(pa.table({"id": ["t"], "conversations": conversations}), tmp_path / "a.parquet")
    sample = open_dataset("world", tmp_path)[0]
    assert sample.image is None and sample.caption is None
    assert sample.conversations == [[("q", "a")], [("r", "b")]]


def test_parquet_conversations_as_llava_writes_them(tmp_path):
    table = pa.Table.from_pylist([{"conversations": turns("<image>\nq", "a")}])
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_dataset("parquet", tmp_path)[0].conversations == [[("q", "a")]]


def test_parquet_mistakes_are_explained(parquet, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'picture' \(image\); it has \['id'"):
        open_dataset("parquet", parquet, image="picture")
    with pytest.raises(ValueError, match=r"no column 'colour' \(extra\)"):
        open_dataset("parquet", parquet, extra=["colour"])
    whole = (parquet / "train-2.parquet").read_bytes()
    (parquet / "train-2.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"train-2\.parquet: not a complete parquet file"):
        open_dataset("parquet", parquet)
    pq.write_table(pa.table({"other": [1]}), parquet / "train-2.parquet")
    with pytest.raises(ValueError, match="differ from"):
        open_dataset("parquet", parquet)


def test_parquet_paths_without_bytes_are_refused(tmp_path):
    table = pa.Table.from_pylist([{"image": {"bytes": None, "path": "/etc/passwd"}}])
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    pq.write_table(table.cast(schema), tmp_path / "a.parquet")
    with pytest.raises(UnreadableImage, match="holds no bytes"):
        open_dataset("parquet", tmp_path)[0]


def test_parquet_fingerprint_follows_content_and_columns(parquet):
    first = open_dataset("parquet", parquet).fingerprint()
    assert open_dataset("world", parquet).fingerprint() == first
    assert open_dataset("parquet", parquet, caption="scene").fingerprint() != first
    pq.write_table(pa.Table.from_pylist(rows(5, 8)), parquet / "train-2.parquet")
    assert open_dataset("parquet", parquet).fingerprint() != first
