"""SEED-Bench, pictures: multiple choice, the first character of the reply counts (SPEC section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.benchmarks.graded import Graded, interval, mean
from reca.benchmarks.items import Question
from reca.benchmarks.reading import answered, hub_rows

VERSION = "lmms-eval rules, pictures"
ROLES = ("questions",)
NEEDED = (
    "question_id", "question", "answer", "question_type_id",
    "choice_a", "choice_b", "choice_c", "choice_d",
)  # fmt: skip
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """The questions about single pictures; videos are left out, as only `seed_image` is reported."""
    found = []
    for row in hub_rows(data["questions"], "SEED-Bench", NEEDED):
        if row.get("data_type", "image") != "image":
            continue
        options = "\n".join(f"{c.upper()}. {row[f'choice_{c}']}" for c in "abcd")
        text = f"{row['question']}\n{options}{SUFFIX}"
        name = str(row["question_id"])
        found.append(Question(name, name, text, str(row["answer"]), str(row["question_type_id"])))
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def parse(reply: str) -> str:
    """The first character of the reply, outer blanks apart; empty where there is none."""
    return reply.strip()[:1]


def correct(reply: str, answer: str) -> bool:
    """Whether the first character is the option's letter, in either case."""
    return parse(reply).lower() == answer.strip().lower()


def grade(
    asked: Sequence[Question], answers: Mapping[str, str], *, partial: bool = False
) -> Graded:
    """Grade answers by question id; `overall` is the accuracy in percent."""
    coverage, rows = answered("seed", asked, answers, partial)
    items: list[dict[str, Any]] = [
        {"id": q.id, "task": q.kind, "score": float(correct(reply, q.answer))} for q, reply in rows
    ]
    share = mean([row["score"] for row in items])
    limits = interval(("seed", row["id"], 100 * row["score"]) for row in items)
    shown = {"overall": None if share is None else 100 * share}
    return Graded(shown, items, coverage, {"overall": limits} if limits else {})
