"""Questions of the understanding benchmarks in the tables of their hubs, a few of every task, in our own words."""

from __future__ import annotations

from itertools import product
from typing import Any

from reca.evaluation.tasks import mme, pope
from tests.hub.encoded import Files, cell, csv_table, image, tables

CARD = {"README.md": b"---\nlicense: other\n---\n"}
SUBJECTS = ("Accounting", "Art_Theory", "Biology", "Music", "Physics")  # of thirty
THINGS = ("cat", "dog", "car", "cup")
Row = dict[str, Any]


def mme_tables() -> Files:
    """Two images of every task, with one question that is right and one that is not."""
    rows: list[Row] = []
    for number, (task, turn) in enumerate(product((*mme.PERCEPTION, *mme.COGNITION), range(2))):
        picture = cell(600 + number)
        for answer, thing in (("Yes", THINGS[0]), ("No", THINGS[1])):
            question = f"Is the answer of this {task} a {thing}? Please answer yes or no."
            rows.append({"question_id": f"{task}/{turn:04d}.png", "image": picture, "question": question,
                         "answer": answer, "category": task})  # fmt: skip
    return {**tables("data/test", rows, 4), **CARD}


def pope_tables() -> Files:
    """Sorted by category in the default configuration; `Full` has the same rows."""
    rows: list[Row] = []
    for place, category in enumerate(sorted(pope.FILES)):
        for number, thing in enumerate(THINGS):
            id_ = len(THINGS) * place + number
            rows.append({"id": str(id_), "question_id": str(number + 1), "question": f"Is there a {thing} here?",
                         "answer": "no" if number % 2 else "yes", "image_source": f"COCO_val2014_{id_ % 3:012d}",
                         "image": cell(650 + id_ % 3), "category": category})  # fmt: skip
    full = {
        name: data
        for category in pope.FILES
        for name, data in tables(
            f"Full/{category}", [row for row in rows if row["category"] == category]
        ).items()
    }
    return {**tables("data/test", rows, 3), **full, **CARD}


def gqa_tables() -> Files:
    """Questions and their images apart, and a configuration that is not fetched."""
    images = [{"id": f"n{number}", "image": cell(700 + number)} for number in range(4)]
    rows = [
        {"id": f"2025{number:05d}", "imageId": f"n{number % 4}", "question": f"What is left of the {thing}?",
         "answer": THINGS[number % 4], "fullAnswer": f"It is a {THINGS[number % 4]}.", "isBalanced": True,
         "groups": {"global": None, "local": "14-thing"}, "entailed": None, "equivalent": None,
         "types": {"structural": "query", "semantic": "rel", "detailed": "relO"}, "annotations": None,
         "semantic": [{"operation": "select", "argument": thing, "dependencies": []}],
         "semanticStr": f"select: {thing}"}
        for number, thing in enumerate(THINGS * 3)
    ]  # fmt: skip
    return {
        **tables("testdev_balanced_images/testdev", images),
        **tables("testdev_balanced_instructions/testdev", rows),
        "train_all_instructions/train-00000-of-00001.parquet": b"never fetched",
        **CARD,
    }


def mmmu_tables() -> Files:
    """Three questions per subject: with options, about two images, and with a short answer."""
    files: Files = {}
    for place, subject in enumerate(SUBJECTS):
        rows = []
        for number, options in enumerate(
            ("['cat', 'dog', 'car', 'cup']", "['<image 1>', '<image 2>']", "[]"), 1
        ):
            shown = {f"image_{n}": None for n in range(1, 8)}
            for n in range(1, 3 if number == 2 else 2):
                shown[f"image_{n}"] = cell(750 + 10 * place + number + n, "PNG")
            rows.append({"id": f"validation_{subject}_{number}", "question": f"What does <image 1> show in {subject}?",
                         "options": options, "explanation": "", **shown, "img_type": "['Diagrams']",
                         "answer": "12" if options == "[]" else "B", "topic_difficulty": "Easy",
                         "question_type": "open" if options == "[]" else "multiple-choice",
                         "subfield": subject})  # fmt: skip
        files |= tables(f"{subject}/validation", rows)
        files |= {
            f"{subject}/{split}-00000-of-00001.parquet": b"never fetched"
            for split in ("dev", "test")
        }
    return {**files, **CARD}


def seed_tables() -> Files:
    """Nine types of questions about images, then one about a video."""
    rows: list[Row] = [
        {"answer": "ABCD"[number % 4], **{f"choice_{c}": t for c, t in zip("abcd", THINGS, strict=True)},
         "data_id": f"{number}_1", "data_type": "image", "question": f"What is seen, by type {1 + number % 9}?",
         "question_id": str(100 + number), "question_type_id": 1 + number % 9, "image": [cell(800 + number)],
         "segment": None}
        for number in range(18)
    ]  # fmt: skip
    frames = [cell(830 + number) for number in range(3)]
    rows.append({**rows[0], "data_type": "video", "question_id": "200", "question_type_id": 10,
                 "image": frames, "segment": [0.0, 3.5]})  # fmt: skip
    return {**tables("data/test", rows, 2), **CARD}


def mmbench_tables() -> Files:
    """English and Chinese, which have the same ids; some questions have a hint or fewer than four options."""
    kinds = ("attribute_recognition", "object_localization", "social_relation", "ocr")
    rows = [
        {"index": 241 + number, "question": f"What does the picture of kind {kinds[number % 4]} show?",
         "hint": "Look closely." if number % 3 else "nan", "answer": "AB"[number % 2], "A": "a cat", "B": "a dog",
         "C": "a car" if number % 4 else "nan", "D": "a cup" if number % 4 else "nan",
         "category": kinds[number % 4], "image": cell(850 + number), "source": "ours",
         "l2-category": kinds[number % 4].split("_")[0], "comment": "nan", "split": "dev"}
        for number in range(12)
    ]  # fmt: skip
    return {
        **tables("en/dev", rows),
        "en/test-00000-of-00001.parquet": b"never fetched",
        "cn/dev-00000-of-00001.parquet": b"never fetched",
        **CARD,
    }


def mmvp_files() -> Files:
    """Six pairs; the table's first column is misspelt, as it is on the hub."""
    rows: list[Row] = []
    for number in range(12):
        right = "(a)" if number % 2 else "(b)"
        rows.append({"lndex": number + 1, "Question": f"Does animal {number // 2} look to the left or to the right?",
                     "Options": "(a) To the left (b) To the right", "Correct Answer": right})  # fmt: skip
    pictures = {f"MMVP Images/{number + 1}.jpg": image(900 + number) for number in range(12)}
    return {"Questions.csv": csv_table(rows), **pictures, **CARD}


def mmvet_tables() -> Files:
    kinds = ("rec", "ocr,math", "know,rec", "gen,rec,spat", "ocr")
    rows = [
        {"question_id": f"v1_{number}", "image_source": f"v1_{number}.png", "question": f"What is x in no. {number}?",
         "answer": f"{number}<OR>x is {number}" if number % 2 else str(number), "image": cell(950 + number, "PNG"),
         "capability": kinds[number % 5]}
        for number in range(10)
    ]  # fmt: skip
    return {**tables("data/test", rows), **CARD}


def files() -> dict[str, Files]:
    """All of them by source."""
    return {
        "mme": mme_tables(),
        "pope": pope_tables(),
        "gqa": gqa_tables(),
        "mmmu": mmmu_tables(),
        "seed-bench": seed_tables(),
        "mmbench": mmbench_tables(),
        "mmvp": mmvp_files(),
        "mmvet": mmvet_tables(),
    }
