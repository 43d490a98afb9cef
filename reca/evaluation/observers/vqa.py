"""DPG-Bench's observer: a VQA model answers the questions about each image, here or in another environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reca.core.artifacts import sha256_bytes
from reca.core.images import decode
from reca.evaluation.detectors.vqa import BlipVqa, ChatModel
from reca.evaluation.observers.exchange import answered
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

    def asked(item: Prompt) -> list[list[Any]]:
        own = by_prompt.get(item.id, [])
        return [[row["proposition_id"], row["question_natural_language"]] for row in own]

    return view.write(seen(view, look, [scorer, identity(folder)], asked))


def _from_file(view: View, questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Answers from another environment; if they are missing, the questions and images for it are written."""
    folder = source_folder(view.data, "answers", "dpg")
    asked: list[Row] = []
    for item in view.items:
        for k in range(view.samples):
            if (item.id, k) in view.pictures:
                about = {
                    "image": official_name(item, k),
                    "sha256": sha256_bytes(view.pictures[item.id, k]),
                }
                asked += [
                    {"id": item.id, "sample": k, "question": row["proposition_id"],
                     "text": row["question_natural_language"], **about}
                    for row in questions.get(item.id, ())
                ]  # fmt: skip
    return answered(folder, asked, lambda row: view.pictures[row["id"], row["sample"]])
