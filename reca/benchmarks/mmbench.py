"""MMBench (English, dev): multiple choice by the letter rule (SPEC section 8).

The official score is circular evaluation on a server or with an LLM as extractor; what is computed
here is the plain accuracy by the rule of the BAGEL script, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.benchmarks.graded import Graded, interval, mean
from reca.benchmarks.items import Question
from reca.benchmarks.reading import answered, hub_rows

VERSION = "en dev, letter rule"
ROLES = ("questions",)
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
EMPTY = "C"  # what the official script makes of an empty reply


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions with their hint and options; `facts["options"]` has the options by letter."""
    found = []
    for row in hub_rows(data["questions"], "MMBench", only="dev"):
        options = {c: str(row[c]) for c in "ABCD" if row.get(c) and str(row[c]) != "nan"}
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        hint = str(row.get("hint") or "")
        text = (
            f"{hint}\n" if hint and hint != "nan" else ""
        ) + f"{row['question']}\n{listed}{SUFFIX}"
        name = str(row["index"])
        kind = str(row.get("l2-category") or row.get("category") or "mmbench")
        found.append(Question(name, name, text, str(row["answer"]), kind, {"options": options}))
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def letter(reply: str, options: Mapping[str, str], empty: str | None = EMPTY) -> str | None:
    """The letter that a reply chooses: its one or first character, else the first option whose text it holds.

    A reply that fits nothing is given back as it is; an empty one counts as `empty`.
    """
    text = reply.strip()
    if not text:
        return empty
    if len(text) == 1 or text[0] in options:
        return text[0]
    return next((name for name, option in options.items() if option in text), text)


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    empty: str | None = None,
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `empty: C` is the official script's, by default an empty reply is wrong.

    Both accuracies are shown.
    """
    coverage, rows = answered("mmbench", asked, answers, partial)
    shown: dict[str, float | None] = {}
    for name, filled in (("empty_is_wrong", None), ("empty_is_c", EMPTY)):
        right = [letter(r, q.facts["options"], filled) == q.answer for q, r in rows]
        share = mean([float(value) for value in right])
        shown[name] = None if share is None else 100 * share
    shown["overall"] = shown["empty_is_c" if empty else "empty_is_wrong"]
    items: list[dict[str, Any]] = [
        {
            "id": q.id,
            "task": q.kind,
            "score": float(letter(r, q.facts["options"], empty) == q.answer),
        }
        for q, r in rows
    ]
    limits = interval(("mmbench", row["id"], 100 * row["score"]) for row in items)
    return Graded(shown, items, coverage, {"overall": limits} if limits else {}, {"empty": empty})
