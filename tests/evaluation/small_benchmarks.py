"""The paper's benchmarks at the size of a test: files of the official forms with a handful of made-up entries."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.evaluation.tiny_networks import NAMES

TEXTS = {  # in the words of the laptop model
    "single_object": "a circle",
    "two_object": "a circle and a square",
    "counting": "two circle",
    "colors": "a red circle",
    "position": "a circle left of a square",
    "color_attr": "a red circle and a blue square",
}
CLAUSES = {
    "single_object": [{"class": "cat", "count": 1}],
    "two_object": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}],
    "counting": [{"class": "cat", "count": 2}],
    "colors": [{"class": "cat", "count": 1, "color": "red"}],
    "position": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "color_attr": [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}],
}  # fmt: skip


def picture(seed: int, size: int = 32, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def geneval(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"tag": tag, "include": clauses, "prompt": TEXTS[tag]})
        for tag, clauses in CLAUSES.items()
    ]
    (folder / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "object_names.txt").write_text("\n".join(NAMES))
    return folder


def dpg(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps({"one.txt": "a cat", "two.txt": "a red dog"}))
    header = (
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        "question_natural_language\n"
    )
    rows = [
        'one,a cat,,1,0,entity,whole,"entity - whole (cat)",is there a cat ?',
        'one,a cat,,2,1,attribute,color,"attribute - color (cat, red)",is the cat red ?',
        'two,a red dog,,1,0,entity,whole,"entity - whole (dog)",is there a dog ?',
    ]
    (folder / "dpg_bench.csv").write_text(header + "\n".join(rows) + "\n")
    return folder


def wise(folder: Path) -> Path:
    """One prompt of each category, by the official ids."""
    folder.mkdir(parents=True)
    files = {
        "cultural_common_sense": [1],
        "spatio-temporal_reasoning": [401, 600],
        "natural_science": [701, 801, 901],
    }
    for name, ids in files.items():
        rows = [
            {"Prompt": "a scene", "Explanation": "why", "Category": "c", "Subcategory": "s", "prompt_id": i}
            for i in ids
        ]  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(rows))
    texts = {"system": "strict", "user": 'PROMPT: "<PROMPT>" EXPLANATION: "<EXPLANATION>"'}
    (folder / "judge_prompt.json").write_text(json.dumps(texts))
    return folder


def imgedit(folder: Path) -> Path:
    (folder / "images/animal").mkdir(parents=True)
    edits = {"7": ("add", "animal/1.jpg"), "12": ("remove", "animal/2.jpg")}
    told = {
        k: {"id": image, "prompt": f"{kind} a dog", "edit_type": kind}
        for k, (kind, image) in edits.items()
    }
    (folder / "singleturn.json").write_text(json.dumps(told))
    (folder / "judge_prompt.json").write_text(
        json.dumps({k: f"{k}: <edit_prompt>" for k in ("add", "remove")})
    )
    for i in (1, 2):
        (folder / f"images/animal/{i}.jpg").write_bytes(picture(i, kind="JPEG"))
    return folder


def mme(folder: Path) -> Path:
    """Two pictures with two questions each, in two tables."""
    folder.mkdir(parents=True)
    for number, task in enumerate(("existence", "code_reasoning")):
        rows = [
            {"question_id": f"{task}/1.jpg", "image": {"bytes": picture(number), "path": None},
             "question": "is the circle red ? Please answer yes or no.", "answer": answer, "category": task}
            for answer in ("Yes", "No")
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / f"test-{number}.parquet")
    return folder
