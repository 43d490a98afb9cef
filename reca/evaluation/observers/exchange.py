"""A folder through which a scorer in another environment gets questions and images, and gives its answers.

questions.jsonl has the questions of all shards of one run: `{"id", "sample", "question": proposition, "text",
"image": file, "sha256": of the image}`. answers.jsonl, which only the user writes: the first three with `answer`.
Answers do not name a model, so the hashes decide: a folder whose questions or images are of other images is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.artifacts import sha256_file, write_atomic, write_lines
from reca.core.documents import fields, json_lines, json_object, lines
from reca.core.locks import in_turn

QUESTIONS, ANSWERS = "questions.jsonl", "answers.jsonl"
OTHER = "its answers are about other images; give an empty folder for the answers of this run"

Row = dict[str, Any]
Key = tuple[str, int, int]  # prompt, sample, proposition


def answered(folder: Path, asked: Sequence[Row], picture: Callable[[Row], bytes]) -> list[Row]:
    """The answers in `folder` to the rows `asked`; `picture` reads the image of a row.

    Missing questions are added, with their images. ValueError if it is about other images, or if answers
    are missing.
    """
    if not asked:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    answers = folder / ANSWERS
    with in_turn(folder):
        before = _questions(folder / QUESTIONS)
        there = _demand_same(folder, asked, before)
        mine = {_key(row): row for row in asked}
        unverified = {
            key
            for key, row in mine.items()
            if "sha256" not in before.get(key, {}) and row["image"] not in there
        }
        has_answers = answers.is_file()
        found = read_answers(answers, mine, unverified, before) if has_answers else {}
        for row in asked:
            if row["image"] not in there and _key(row) not in found:
                write_atomic(folder / row["image"], picture(row))
                there.add(row["image"])
        if before != before | mine:
            write_lines(folder / QUESTIONS, (before | mine).values())
    if not has_answers:
        raise ValueError(
            f"{folder}: questions.jsonl and the images are written; write the answers of your scorer to "
            "answers.jsonl in this folder, then run the same command again"
        )
    lacking = sorted(mine.keys() - found.keys())
    if lacking:
        raise ValueError(
            f"{answers}: {len(lacking)} questions have no answer, for instance {lacking[0]}; add them "
            "(all questions are in questions.jsonl)"
        )
    return list(found.values())


def _key(row: Mapping[str, Any]) -> Key:
    return str(row["id"]), int(row["sample"]), int(row["question"])


def _questions(path: Path) -> dict[Key, Row]:
    """The questions that earlier runs wrote; those of an older reca have no hash."""
    if not path.is_file():
        return {}
    rows = lines(path, id=str, sample=int, question=int, text=str, image=str)
    return {_key(row): row for row in rows}


def _demand_same(folder: Path, asked: Sequence[Row], before: Mapping[Key, Row]) -> set[str]:
    """The images that are in the folder; ValueError if an image or a question differs from that of this run."""
    hashes = {row["image"]: row["sha256"] for row in asked}
    there = {name for name in hashes if (folder / name).exists()}
    for name in sorted(there):
        if not (folder / name).is_file() or sha256_file(folder / name) != hashes[name]:
            raise ValueError(f"{folder / name}: differs from the image of this run, so {OTHER}")
    for row in asked:
        old = before.get(_key(row), row)
        if old.get("sha256", row["sha256"]) != row["sha256"]:
            raise ValueError(
                f"{folder / QUESTIONS}: asks {_key(row)} about another image than this run, so {OTHER}"
            )
        if old["text"] != row["text"]:
            raise ValueError(
                f"{folder / QUESTIONS}: {_key(row)} is {old['text']!r}, but {row['text']!r} in the table of "
                "questions; give an empty folder for the answers"
            )
    return there


def read_answers(
    path: Path,
    asked: Mapping[Key, Row],
    unverified: Collection[Key] = (),
    known: Collection[Key] = (),
) -> dict[Key, Row]:
    """The answers of another environment to `asked`, by question; those to `known`, of other shards, are left out.

    `unverified`: questions whose image nothing in the folder identifies. ValueError for answers that are
    unknown, contradictory or about another image.
    """
    found: dict[Key, Row] = {}
    for number, line in json_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json_object(line, "the line")
            key = _key(row)
            answer = fields(row, "the line", answer=str)["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: not a valid answer ({error}); correct the line") from error
        if key not in asked:
            if key in known:
                continue
            raise ValueError(f"{where}: {key} is not in questions.jsonl; remove the line")
        sha256 = asked[key]["sha256"]
        if row.get("sha256", sha256) != sha256:
            raise ValueError(f"{where}: about another image than that of this run, so {OTHER}")
        if key in unverified and "sha256" not in row:
            raise ValueError(
                f"{where}: neither questions.jsonl nor an image in this folder says which image {key} is about; "
                "give an empty folder for the answers of this run"
            )
        if key in found and found[key]["answer"] != answer:
            raise ValueError(f"{where}: {key} has two different answers; keep one")
        named = dict(zip(("id", "sample", "question"), key, strict=True))
        found[key] = named | {"answer": answer, "sha256": sha256}
    return found
