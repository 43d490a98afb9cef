"""GQA testdev-balanced: short answers, exact match (SPEC section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.benchmarks.graded import Graded, interval, mean
from reca.benchmarks.items import Question
from reca.benchmarks.reading import answered, hub_rows

VERSION = "testdev balanced, InternVL rules"
ROLES = ("questions",)
NEEDED = ("id", "imageId", "question", "answer")  # columns of the hub's tables
SUFFIX = " Answer the question using a single word or phrase."
_PUNCTUATION = str.maketrans("", "", ".,!?;:'\"")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions; their pictures lie in tables of their own, by id."""
    rows = hub_rows(data["questions"], "GQA", NEEDED, only="question")
    return [
        Question(
            str(r["id"]), str(r["imageId"]), str(r["question"]) + SUFFIX, str(r["answer"]), "gqa"
        )
        for r in rows
    ]


# ---- scores: pure ----------------------------------------------------------------------------------
def correct(answer: str, truth: str) -> bool:
    """Equal but for outer blanks and case."""
    return answer.strip().lower() == truth.strip().lower()


def correct_without_punctuation(answer: str, truth: str) -> bool:
    """The lmms-eval flavour: punctuation is removed too."""
    return correct(answer.translate(_PUNCTUATION), truth.translate(_PUNCTUATION))


def summary(rows: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """`exact_match` and the flavour without punctuation (0..1) from (answer, truth)."""
    return {
        "exact_match": mean([float(correct(*row)) for row in rows]),
        "lmms_eval.exact_match": mean([float(correct_without_punctuation(*row)) for row in rows]),
    }


def grade(
    asked: Sequence[Question], answers: Mapping[str, str], *, partial: bool = False
) -> Graded:
    """Grade answers by question id; `overall` is the exact match in percent."""
    coverage, rows = answered("gqa", asked, answers, partial)
    found = summary([(reply, q.answer) for q, reply in rows])
    items: list[dict[str, Any]] = [
        {"id": q.id, "score": float(correct(reply, q.answer))} for q, reply in rows
    ]
    limits = interval(("gqa", row["id"], 100 * row["score"]) for row in items)
    exact = found["exact_match"]
    shown = {"overall": None if exact is None else 100 * exact, **found}
    return Graded(shown, items, coverage, {"overall": limits} if limits else {})
