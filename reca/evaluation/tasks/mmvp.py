"""MMVP: 150 pairs of images that encoders confuse; both answers must be correct (reference/benchmarks.md 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, interval, mean
from reca.evaluation.reading import (
    Ids,
    answered,
    csv_rows,
    demand_columns,
    demand_option,
    demand_some,
    demand_text,
    one_file,
)
from reca.evaluation.tasks.mmbench import choice
from reca.inference.items import Question

VERSION = "letter rule, pairs"
ROLES = ("questions",)
TOGETHER = 2  # questions, which are scored as a pair
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_OPTION = re.compile(r"\(([a-z])\)\s*([^()]*)")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """The 300 questions of `Questions.csv`, in file order; rows 2i and 2i + 1 are a pair."""
    table, ids = one_file(data["questions"], "Questions.csv", "source mmvp"), Ids()
    found = []
    for _, row in csv_rows(table):
        first = "Index" if "Index" in row else "lndex"  # as the published table misspells it
        needed = (first, "Question", "Options", "Correct Answer")
        demand_columns(table, list(row), needed)
        index, question, options, answer = (row[name] for name in needed)
        ids.add(index, table)
        demand_text(table, index, "question", question)
        found.append(_question(table, index, question, options, answer))
    demand_some(table, found)
    return found


def _question(table: Path, index: str, question: str, listed: str, truth: str) -> Question:
    options = {k.upper(): v.strip() for k, v in _OPTION.findall(listed)}
    shown = "\n".join(f"{name}. {text}" for name, text in options.items())
    answer = truth.strip("() ").upper()
    demand_option(table, index, answer, options)
    text = f"{question}\n{shown}{SUFFIX}"
    return Question(index, index, text, answer, "mmvp", {"options": options})


# ---- scores: pure ----------------------------------------------------------------------------------
def pairs(right: Sequence[bool]) -> float | None:
    """The share of consecutive pairs with both answers correct; ValueError for an odd number of answers."""
    if len(right) % 2:
        raise ValueError(
            f"mmvp: {len(right)} answers do not form pairs; answer both questions of a pair"
        )
    both = [right[i] and right[i + 1] for i in range(0, len(right), 2)]
    return mean([float(value) for value in both])


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the percentage of correct pairs. An empty reply is wrong.

    Only pairs with both questions answered are scored. `reader: careful` parses with `careful.letter`; scores of both
    readers and their disagreements are reported.
    """
    if len(asked) % 2:
        raise ValueError(
            f"mmvp: {len(asked)} questions are no pairs; fetch the source of MMVP again (Questions.csv)"
        )
    coverage, rows = answered("mmvp", asked, answers, partial)
    chosen = {n: {q.id: choice(r, q.facts["options"], n) for q, r in rows} for n in careful.READERS}
    couples = [(a, b) for a, b in zip(asked[::2], asked[1::2], strict=True)]
    whole = [(a, b) for a, b in couples if a.id in chosen[reader] and b.id in chosen[reader]]
    shown: dict[str, float | None] = {}
    for name, found in chosen.items():
        right = {q.id: found[q.id] == q.answer for q, _ in rows}
        share = pairs([right[q.id] for couple in whole for q in couple])
        shown[f"{name}_reader"] = None if share is None else 100 * share
    right = {q.id: chosen[reader][q.id] == q.answer for q, _ in rows}
    items: list[dict[str, Any]] = [
        {"id": name, "score": float(value)} for name, value in right.items()
    ]
    limits = interval(("mmvp", a.id, 100.0 * (right[a.id] and right[b.id])) for a, b in whole)
    shown["overall"] = shown[f"{reader}_reader"]
    differ = [q.id for q, _ in rows if chosen["published"][q.id] != chosen["careful"][q.id]]
    return Graded(
        shown, items, coverage, {"overall": limits} if limits else {}, {"reader": reader},
        {readings.DIFFERENT: differ},
    )  # fmt: skip
