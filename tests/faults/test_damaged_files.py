"""Random damage to every kind of file that is read: a value, or one ValueError that names the file; nothing else."""

from __future__ import annotations

import json
import resource
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reca.core.images import UnreadableImage, decode
from reca.data.formats import open_dataset
from reca.data.readers.archives import ImageFolder
from reca.features.store import map_safetensors
from reca.inference.imageset import ImageSet
from reca.models import checkpoint_io
from tests.core import test_images
from tests.data.test_archives import pack_zip
from tests.data.test_readers import rows, turns
from tests.data.test_tar import png, write_shard
from tests.faults.damage import damaged
from tests.inference import test_imageset


# ---- what is read ------------------------------------------------------------------------------
def read_all(dataset) -> None:
    """Every sample: read, or refused by its name; then its picture, decoded or refused."""
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
            if sample.image is not None:
                decode(sample.image, name=sample.id)
        except ValueError as error:
            if isinstance(error, UnicodeError | json.JSONDecodeError) or ": " not in str(error):
                raise  # the reason alone, which names nothing


def make_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(6)), path, row_group_size=3)


def make_zip(path: Path) -> None:
    pack_zip(path, {f"{i}.png": png(i) for i in range(4)})


def read_zip(path: Path) -> None:
    folder = ImageFolder(path.parent)
    for i in range(4):
        with suppress(UnreadableImage):
            decode(folder.read(f"{i}.png", "sample"), name="sample")


def make_llava(path: Path) -> None:
    for i in range(4):
        (path.parent / f"{i}.png").write_bytes(png(i))
    talks = [
        {"id": str(i), "image": f"{i}.png", "conversations": turns(f"<image>\nWhat {i}?", "A dot.")}
        for i in range(4)
    ]
    path.write_text(json.dumps(talks))


def make_set(path: Path) -> None:
    test_imageset.write(path)


def read_set(path: Path) -> None:
    pictures = ImageSet(path)
    for entry in pictures:
        pictures.image(*entry)
        pictures.recipe(*entry)


def make_weights(path: Path) -> None:
    checkpoint_io.save_safetensors({f"w{i}": torch.ones(3, i + 1) for i in range(6)}, path)


def make_pickle(path: Path) -> None:
    torch.save({f"w{i}": torch.ones(3, i + 1) for i in range(6)}, path)


def read_weights(path: Path) -> None:
    read = (checkpoint_io.load_safetensors, checkpoint_io.safetensors_manifest, map_safetensors)
    for one in read:
        one(path)


# file -> how it is made, how it is read, and where single bytes are changed (None: anywhere)
CONTAINERS = {
    "shard.tar": (lambda path: write_shard(path, 0, 4), lambda p: read_all(open_dataset("tar", p.parent)), None),
    "train.parquet": (make_parquet, lambda p: read_all(open_dataset("parquet", p.parent)), None),
    "mix.json": (make_llava, lambda p: read_all(open_dataset("llava", p, max_malformed=1.0)), None),
    "images.zip": (make_zip, read_zip, None),
    "pictures.tar": (make_set, read_set, None),
    "model.safetensors": (make_weights, read_weights, 400),
    "model.bin": (make_pickle, lambda p: checkpoint_io.load_foreign(p, allow_unpinned=True), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_containers_are_read_or_named(tmp_path, campaign, name):
    make, read, head = CONTAINERS[name]
    path = tmp_path / "data" / name
    path.parent.mkdir()
    make(path)
    read(path)
    whole = path.read_bytes()
    for rng in campaign.draws(60, full=2000):
        for left in path.parent.glob(".reca-*"):
            left.unlink()
        path.write_bytes(damaged(whole, rng, head))
        with campaign.case():
            started = time.monotonic()
            try:
                read(path)
            except ValueError as error:
                assert name.split(".")[0] in str(error), error
            assert time.monotonic() - started < 5
            assert [p.name for p in tmp_path.iterdir()] == ["data"]
    path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_pictures_are_rgb_or_refused(campaign, kind):
    whole = getattr(test_images, kind)
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rng in campaign.draws(200, full=10_000):
        data = damaged(whole, rng)
        with campaign.case():
            started = time.monotonic()
            try:
                assert decode(data, name="shard/17").mode == "RGB"
            except UnreadableImage as error:
                assert "shard/17" in str(error)
            assert time.monotonic() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
