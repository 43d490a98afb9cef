"""GQA testdev-balanced: short answers, exact match (reference/benchmarks.md 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, interval, mean
from reca.evaluation.reading import Tables, answered, hub_rows
from reca.inference.items import Question

VERSION = "testdev balanced, InternVL rules"
ROLES = ("questions",)
TABLES = Tables("testdev_balanced_instructions", "testdev")
PICTURES = Tables("testdev_balanced_images", "testdev")
NEEDED = ("id", "imageId", "question", "answer")  # columns of the hub's tables
SUFFIX = " Answer the question using a single word or phrase."
_PUNCTUATION = str.maketrans("", "", ".,!?;:'\"")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions; their images are in separate tables, by id."""
    rows = hub_rows(data["questions"], "GQA", NEEDED, TABLES, lambda row: str(row["id"]))
    return [
        Question(
            str(r["id"]), str(r["imageId"]), str(r["question"]) + SUFFIX, str(r["answer"]), "gqa"
        )
        for _, r in rows
    ]


# ---- scores: pure ----------------------------------------------------------------------------------
def correct(answer: str, truth: str) -> bool:
    """Whether two answers are equal, ignoring case and surrounding whitespace."""
    return answer.strip().lower() == truth.strip().lower()


def correct_without_punctuation(answer: str, truth: str) -> bool:
    """The lmms-eval variant of `correct`, which also ignores punctuation."""
    return correct(answer.translate(_PUNCTUATION), truth.translate(_PUNCTUATION))


def summary(rows: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """`exact_match` and the variant without punctuation (0..1) from rows (answer, truth)."""
    return {
        "exact_match": mean([float(correct(*row)) for row in rows]),
        "lmms_eval.exact_match": mean([float(correct_without_punctuation(*row)) for row in rows]),
    }


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the exact match in percent.

    `reader: careful` compares with `careful.same_answer`; scores of both readers and their disagreements are reported.
    """
    coverage, rows = answered("gqa", asked, answers, partial)
    rules = {"published": correct, "careful": careful.same_answer}
    right = {name: [rule(reply, q.answer) for q, reply in rows] for name, rule in rules.items()}
    items: list[dict[str, Any]] = [
        {"id": q.id, "score": float(value)}
        for (q, _), value in zip(rows, right[reader], strict=True)
    ]
    limits = interval(("gqa", row["id"], 100 * row["score"]) for row in items)
    shown = summary([(reply, q.answer) for q, reply in rows])
    for name, values in right.items():
        share = mean([float(value) for value in values])
        shown[f"{name}_reader"] = None if share is None else 100 * share
    shown["overall"] = shown[f"{reader}_reader"]
    both = zip(rows, right["published"], right["careful"], strict=True)
    return Graded(
        shown, items, coverage, {"overall": limits} if limits else {}, {"reader": reader},
        {readings.DIFFERENT: [q.id for (q, _), one, other in both if one != other]},
    )  # fmt: skip
