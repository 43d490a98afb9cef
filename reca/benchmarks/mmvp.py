"""MMVP: 150 pairs of pictures that encoders confuse; both must be right (SPEC section 8)."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.benchmarks import careful, readings
from reca.benchmarks.graded import Graded, interval, mean
from reca.benchmarks.items import Question
from reca.benchmarks.mmbench import choice
from reca.benchmarks.reading import Ids, answered, demand_columns, demand_option, one_file

VERSION = "letter rule, pairs"
ROLES = ("questions",)
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_OPTION = re.compile(r"\(([a-z])\)\s*([^()]*)")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """The 300 questions of `Questions.csv`, in file order: rows 2i and 2i + 1 are a pair."""
    table, ids = one_file(data["questions"], "Questions.csv", "source mmvp"), Ids()
    found = []
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or ())
        first = "Index" if "Index" in names else "lndex"  # as the published table misspells it
        demand_columns(table, names, (first, "Question", "Options", "Correct Answer"))
        for row in rows:
            index = row[first]
            options = {k.upper(): v.strip() for k, v in _OPTION.findall(row["Options"])}
            listed = "\n".join(f"{name}. {text}" for name, text in options.items())
            answer = row["Correct Answer"].strip("() ").upper()
            text = f"{row['Question']}\n{listed}{SUFFIX}"
            ids.add(index, table)
            demand_option(table, index, answer, options)
            found.append(Question(index, index, text, answer, "mmvp", {"options": options}))
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def pairs(right: Sequence[bool]) -> float | None:
    """The share of consecutive pairs with both right; ValueError for an odd number of rows."""
    if len(right) % 2:
        raise ValueError(f"mmvp: {len(right)} rows make no pairs")
    both = [right[i] and right[i + 1] for i in range(0, len(right), 2)]
    return mean([float(value) for value in both])


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the share of pairs in percent. An empty reply is wrong.

    A pair counts only where both of its questions are answered. `reader: careful` reads replies by
    `careful.letter`; both readers' values are shown, and how often they differ.
    """
    careful.demand("mmvp", reader)
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
