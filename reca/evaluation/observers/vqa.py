"""DPG-Bench's observer: a VQA model answers the questions about each image, here or in another environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.artifacts import write_atomic
from reca.core.images import decode
from reca.evaluation.detectors.vqa import BlipVqa, ChatModel, read_answers, write_questions
from reca.evaluation.observers.view import Row, View, device, identity, seen, source_folder
from reca.evaluation.tasks.dpg import by_item, official_name, questions
from reca.inference.items import Prompt


def observe(view: View) -> dict[str, Any]:
    """Write the answers for every image; ValueError if the network or the file of external answers is missing."""
    scorer = view.benchmark.scorer or "blip-vqa"
    by_prompt = by_item(questions(view.data))
    if scorer.startswith("file:"):  # file:<name>, answers.jsonl in the folder of role `answers`
        return view.write(_from_file(view, by_prompt))
    folder = source_folder(view.data, "vqa", "dpg")
    answerer = BlipVqa(folder, device()) if scorer == "blip-vqa" else ChatModel(folder, device())

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        own = by_prompt.get(item.id, [])
        image = decode(picture, name=official_name(item, k))
        said = answerer(image, [row["question_natural_language"] for row in own])
        return [
            {"id": item.id, "sample": k, "question": row["proposition_id"], "answer": answer}
            for row, answer in zip(own, said, strict=True)
        ]

    return view.write(seen(view, look, [scorer, identity(folder)]))


def _from_file(view: View, questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Row]:
    """Answers from another environment; if they are missing, the questions and images for it are written."""
    items, pictures, samples = view.items, view.pictures, view.samples
    folder = source_folder(view.data, "answers", "dpg")
    asked = [
        {"id": i.id, "sample": k, "question": row["proposition_id"],
         "text": row["question_natural_language"], "image": official_name(i, k)}
        for i in items
        for k in range(samples)
        if (i.id, k) in pictures
        for row in questions.get(i.id, ())
    ]  # fmt: skip
    answers = folder / "answers.jsonl"
    if not answers.is_file():
        write_questions(folder / "questions.jsonl", asked)
        for item in items:
            for k in range(samples):
                if (item.id, k) in pictures:
                    _add(folder / official_name(item, k), pictures[item.id, k])
        raise ValueError(
            f"{folder}: questions.jsonl and the images are written; write the answers of your scorer to "
            "answers.jsonl in this folder, then run the same command again"
        )
    return read_answers(answers, [(r["id"], r["sample"], r["question"]) for r in asked])


def _add(path: Path, picture: bytes) -> None:
    """Write an image; ValueError if a different file of that name exists, which may be the user's own."""
    if path.exists() and path.read_bytes() != picture:
        raise ValueError(
            f"{path}: differs from the image of this run; give an empty folder for the answers"
        )
    write_atomic(path, picture)
