"""Training data in the layouts of their hubs: a dozen images with texts in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from tests.hub.encoded import Files, document, image, packed, tables, tar
from tests.hub.encoded import cell as image_cell

ROWS = 12
COLOURS = ("red", "green", "blue", "yellow")
THINGS = ("circle", "square", "triangle")
MIX = "llava_v1_5_mix665k.json"
# Where LLaVA's conversations expect an image, and the source and archive that hold it.
ORIGINS = (
    ("coco/train2017/{:012d}.jpg", "llava-images-coco", "train2017.zip"),
    ("gqa/images/{}.jpg", "llava-images-gqa", "gqa_images.zip"),
    ("ocr_vqa/images/{:010d}.jpg", "llava-images-ocr-vqa", "ocr_vqa.tar"),
    ("textvqa/train_images/{:016x}.jpg", "llava-images-textvqa", "train_val_images.zip"),
    ("vg/VG_100K/{}.jpg", "llava-images-vg", "VG_100K.zip"),
    ("vg/VG_100K_2/{}.jpg", "llava-images-vg", "VG_100K_2.zip"),
)


def captions() -> Iterator[str]:
    """A red circle, a green square, and so on, all different for twelve."""
    for colour, thing in zip(cycle(COLOURS), cycle(THINGS), strict=False):
        yield f"a {colour} {thing}"


def midjourney() -> Files:
    rows = [
        {
            "id": f"{number:08d}",
            "image": image_cell(number, size=(40, 32) if number % 3 else (32, 40)),
            "prompt": caption,
            "llava": f"The image shows {caption} in the middle of a large room.",
        }
        for number, caption in zip(range(ROWS), captions(), strict=False)
    ]
    return {**tables("data/train", rows, 2), "README.md": b"---\nlicense: other\n---\n"}


def webdataset(first: int, count: int) -> bytes:
    """A shard of images and captions whose names are numbers."""
    members = {}
    for number, caption in zip(range(first, first + count), captions(), strict=False):
        members[f"{number:08d}.jpg"] = image(100 + number)
        members[f"{number:08d}.txt"] = caption.encode()
    return tar(members)


def blip3o() -> Files:
    return {
        "dalle3.tar": webdataset(0, ROWS // 2),
        "geneval_train.tar": webdataset(ROWS // 2, ROWS - ROWS // 2),
        "README.md": b"---\nlicense: other\n---\n",
    }


def text_to_image() -> Files:
    """The shard of 1024 pixels that the experiments read, and one of 512 that they do not."""
    members = {}
    for number, caption in zip(range(ROWS), captions(), strict=False):
        members[f"{number:05d}.jpg"] = image(200 + number)
        members[f"{number:05d}.json"] = document({"prompt": caption})
    return {
        "data_1024_10K/data_000000.tar": tar(members),
        "data_512_2M/data_000000.tar": b"never fetched",
        "README.md": b"---\nlicense: other\n---\n",
    }


def llava() -> dict[str, Files]:
    """Conversations by source, and the archives of the images that they refer to."""
    talks: list[dict[str, object]] = []
    archives: dict[str, dict[str, Files]] = {}
    for number, (origin, caption) in enumerate(zip(ORIGINS * 2, captions(), strict=False)):
        path, source, archive = origin[0].format(number + 1), *origin[1:]
        inside = archives.setdefault(source, {}).setdefault(archive, {})
        inside[path.partition("/")[2]] = image(300 + number)
        asked = [("What is shown?", caption), ("What colour has it?", caption.split()[1])]
        talks.append({"id": f"{number:012d}", "image": path, "conversations": turns(asked)})
    text = turns([("What is the opposite of left?", "Right.")], shown=False)
    talks.append({"id": "text_0", "model": "", "conversations": text})
    mix = {
        MIX: document(talks),
        "llava_instruct_150k.json": b"[]",
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
    }
    packs = {
        source: {
            archive: (tar if archive.endswith(".tar") else packed)(members)
            for archive, members in found.items()
        }
        for source, found in archives.items()
    }
    return {"llava-665k": mix, **packs}


def turns(asked: list[tuple[str, str]], shown: bool = True) -> list[dict[str, str]]:
    """A conversation in LLaVA's form, with the image before its first question."""
    found = []
    for number, (question, answer) in enumerate(asked):
        mark = "<image>\n" if shown and not number else ""
        found += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return found


def files() -> dict[str, Files]:
    """All training data by source."""
    return {
        "midjourney-v6-llava": midjourney(),
        "blip3o-60k": blip3o(),
        "text-to-image-2m-10k": text_to_image(),
        **llava(),
    }
