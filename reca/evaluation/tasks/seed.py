"""SEED-Bench (images): multiple choice, parsed by the first character of the reply (reference/benchmarks.md 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, interval, mean
from reca.evaluation.reading import Tables, answered, demand_option, demand_some, hub_rows
from reca.inference.items import Question

VERSION = "lmms-eval rules, pictures"
ROLES = ("questions",)
TABLES = Tables("data", "test")
NEEDED = (
    "question_id", "question", "answer", "question_type_id",
    "choice_a", "choice_b", "choice_c", "choice_d",
)  # fmt: skip
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """The questions about single images; those about videos are skipped, as only `seed_image` is reported."""
    found = []
    rows = hub_rows(
        data["questions"], "SEED-Bench", NEEDED, TABLES, lambda row: str(row["question_id"])
    )
    for path, row in rows:
        if row.get("data_type", "image") != "image":
            continue
        options = {c.upper(): str(row[f"choice_{c}"]) for c in "abcd"}
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        text = f"{row['question']}\n{listed}{SUFFIX}"
        name, kind = str(row["question_id"]), str(row["question_type_id"])
        demand_option(path, name, str(row["answer"]).strip().upper(), options)
        found.append(Question(name, name, text, str(row["answer"]), kind, {"options": options}))
    demand_some(data["questions"], found)
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def parse(reply: str) -> str:
    """The first character of a reply after whitespace; empty for an empty reply."""
    return reply.strip()[:1]


def correct(reply: str, answer: str) -> bool:
    """Whether the first character is the letter of the correct option, ignoring case."""
    return parse(reply).lower() == answer.strip().lower()


def chosen(question: Question, reply: str, reader: str) -> str | None:
    """The option that a reader finds; None if it finds none."""
    options = question.facts["options"]
    if reader == "careful":
        return careful.letter(reply, options)
    return parse(reply).upper() if parse(reply).upper() in options else None


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the accuracy in percent.

    `reader: careful` parses with `careful.letter`; scores of both readers and their disagreements are reported.
    """
    coverage, rows = answered("seed", asked, answers, partial)
    found = {n: [chosen(q, reply, n) for q, reply in rows] for n in careful.READERS}
    truths = [q.answer.strip().upper() for q, _ in rows]
    shown: dict[str, float | None] = {}
    for name, letters in found.items():
        share = mean([float(a == b) for a, b in zip(letters, truths, strict=True)])
        shown[f"{name}_reader"] = None if share is None else 100 * share
    items: list[dict[str, Any]] = [
        {"id": q.id, "task": q.kind, "score": float(letter == truth)}
        for (q, _), letter, truth in zip(rows, found[reader], truths, strict=True)
    ]
    limits = interval(("seed", row["id"], 100 * row["score"]) for row in items)
    shown["overall"] = shown[f"{reader}_reader"]
    both = zip(rows, found["published"], found["careful"], strict=True)
    return Graded(
        shown, items, coverage, {"overall": limits} if limits else {}, {"reader": reader},
        {readings.DIFFERENT: [q.id for (q, _), one, other in both if one != other]},
    )  # fmt: skip
