"""Training data and a benchmark in the layouts of their hubs: pinned, fetched and read by the readers of the runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from reca.cli import main
from reca.core.images import decode
from reca.data.dataset import Sample
from reca.evaluation.tasks import pope
from reca.sources.catalogue import load_sources
from tests.hub.benchmarks import CATALOGUE
from tests.hub.encoded import packed, parquet, tar
from tests.hub.read import samples
from tests.hub.server import Hub, Repository

TURNS = [
    ("human", "<image>\nWhat is it?"),
    ("gpt", "A dot."),
    ("human", "Its colour?"),
    ("gpt", "Grey."),
]


def jpeg(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "JPEG")
    return buffer.getvalue()


def cell(grey: int) -> dict[str, Any]:
    """An image in the struct of the hub's tables."""
    return {"bytes": jpeg(grey), "path": f"{grey}.jpg"}


def bring(site: Hub, files: dict[str, dict[str, bytes]]) -> None:
    """Offer data sets by source, then pin and fetch them as a user does; what has no hub comes from a mirror folder."""
    catalogue = load_sources(CATALOGUE)
    for name, content in files.items():
        if catalogue[name].kind == "hub":
            site.repositories[f"datasets/{catalogue[name].id}"] = Repository.of(content)
            continue
        for path, data in content.items():
            Path("mirror", name).mkdir(parents=True, exist_ok=True)
            Path("mirror", name, path).write_bytes(data)
    Path("mirror").mkdir(exist_ok=True)
    assert main(["pin", *files, "--mirror", "mirror"]) == 0
    for name in files:
        assert main(["fetch", name, "--out", f"data/{name}", "--mirror", "mirror"]) == 0


def grey(sample: Sample) -> int:
    """The shade of an image, to the nearest ten."""
    return round(decode(sample.image or b"", name=sample.id).getpixel((0, 0))[0], -1)


def test_midjourney_is_read_from_its_shards(site: Hub) -> None:
    rows = [
        {"id": str(n), "image": cell(n), "prompt": f"picture {n}", "llava": "long"}
        for n in (10, 20, 30)
    ]
    shards = {
        f"data/train-0000{n}-of-00002.parquet": parquet(rows[2 * n : 2 * n + 2]) for n in range(2)
    }
    bring(
        site,
        {"midjourney-v6-llava": {**shards, "README.md": b"---\n", "load.py": b"raise SystemExit"}},
    )
    found = samples("midjourney_v6")
    assert [(grey(one), one.caption) for one in found] == [
        (n, f"picture {n}") for n in (10, 20, 30)
    ]
    assert not list(Path("data").rglob("*.py"))


def test_blip3o_is_read_from_its_tars(site: Hub) -> None:
    def shard(*numbers: int) -> bytes:
        members = {}
        for number in numbers:
            members |= {
                f"{number:08}.jpg": jpeg(number),
                f"{number:08}.txt": f"picture {number}".encode(),
            }
        return tar(members)

    bring(site, {"blip3o-60k": {"dalle3.tar": shard(10, 20), "object_1.tar": shard(30)}})
    found = samples("blip3o_60k")
    assert [(grey(one), one.caption) for one in found] == [
        (n, f"picture {n}") for n in (10, 20, 30)
    ]


def test_llava_finds_its_images_in_the_archives_of_their_origins(site: Hub) -> None:
    images = {
        "coco/train2017/000000000010.jpg": ("llava-images-coco", "train2017.zip"),
        "gqa/images/20.jpg": ("llava-images-gqa", "gqa_images.zip"),
        "ocr_vqa/images/30.jpg": ("llava-images-ocr-vqa", "ocr_vqa.tar"),
        "textvqa/train_images/40.jpg": ("llava-images-textvqa", "train_val_images.zip"),
        "vg/VG_100K/50.jpg": ("llava-images-vg", "VG_100K.zip"),
        "vg/VG_100K_2/60.jpg": ("llava-images-vg", "VG_100K_2.zip"),
    }
    files: dict[str, dict[str, bytes]] = {}
    for shade, (path, (source, archive)) in enumerate(images.items(), 1):
        pack = tar if archive.endswith(".tar") else packed
        files.setdefault(source, {})[archive] = pack({path.partition("/")[2]: jpeg(10 * shade)})
    turns = [{"from": who, "value": text} for who, text in TURNS]
    talks = [{"id": str(n), "image": path, "conversations": turns} for n, path in enumerate(images)]
    talks.append({"id": "text", "conversations": turns[2:], "model": ""})
    mix = {"llava_v1_5_mix665k.json": json.dumps(talks).encode(), "llava_instruct_150k.json": b"[]"}
    bring(site, {"llava-665k": mix, **files})
    shown = [one for one in samples("llava_665k") if one.image is not None]
    assert [grey(one) for one in shown] == [10, 20, 30, 40, 50, 60]
    assert shown[0].conversations == [[("What is it?", "A dot."), ("Its colour?", "Grey.")]]


def test_pope_is_read_once_though_its_hub_has_every_row_twice(site: Hub) -> None:
    rows = [
        {"id": str(n), "question_id": str(n), "question": "Is there a cat?", "answer": "yes",
         "image_source": f"COCO_{n}", "image": cell(n), "category": category}
        for n, category in enumerate(pope.FILES)
    ]  # fmt: skip
    full = {f"Full/{row['category']}-00000-of-00001.parquet": parquet([row]) for row in rows}
    bring(site, {"pope": {"data/test-00000-of-00001.parquet": parquet(rows), **full}})
    asked = pope.questions({"questions": Path("data/pope")})
    assert sorted(question.kind for question in asked) == sorted(pope.FILES)
