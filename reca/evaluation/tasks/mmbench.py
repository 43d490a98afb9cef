"""MMBench (English, dev): multiple choice by the letter rule (reference/benchmarks.md 8).

Two scores: `vanilla`, with every question once, and `circular`, where a question counts as correct only if it is
answered correctly in every rotation of its options. The latter is the official server's evaluation, which parses
replies with an LLM; here they are parsed by the letter rule of the BAGEL script. Rotations are sampled if
`benchmarks.mmbench.rotations` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, interval, mean
from reca.evaluation.reading import Tables, answered, demand_option, hub_rows
from reca.inference.items import Question

VERSION = "en dev, letter rule"
ROLES = ("questions",)
TABLES = Tables("en", "dev")  # other languages use the same ids
NEEDED = ("index", "question", "hint", "A", "B", "C", "D", "answer")  # columns of the hub's tables
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
EMPTY = "C"  # how the official script counts an empty reply


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions with their hints and options; `facts["options"]` has the options by letter."""
    found = []
    rows = hub_rows(data["questions"], "MMBench", NEEDED, TABLES, lambda row: str(row["index"]))
    for path, row in rows:
        options = {c: str(row[c]) for c in "ABCD" if row.get(c) and str(row[c]) != "nan"}
        hint = str(row.get("hint") or "")
        stem = (f"{hint}\n" if hint and hint != "nan" else "") + str(row["question"])
        name = str(row["index"])
        kind = str(row.get("l2-category") or row.get("category") or "mmbench")
        demand_option(path, name, str(row["answer"]), options)
        facts = {"options": options, "stem": stem, "of": name}
        found.append(Question(name, name, _text(stem, options), str(row["answer"]), kind, facts))
    return found


def _text(stem: str, options: Mapping[str, str]) -> str:
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return f"{stem}\n{listed}{SUFFIX}"


def rotated(asked: Sequence[Question]) -> list[Question]:
    """Every question in all rotations of its options: the original, then `<id>~1`, `<id>~2`, ..."""
    return [turned for question in asked for turned in _rotations(question)]


def _rotations(question: Question) -> list[Question]:
    letters, texts = list(question.facts["options"]), list(question.facts["options"].values())
    if question.answer not in letters:
        raise ValueError(
            f"mmbench: question {question.id}: answer {question.answer!r} is not one of {letters}; use en dev"
        )
    found = [question]
    for turn in range(1, len(letters)):
        options = dict(zip(letters, texts[turn:] + texts[:turn], strict=True))
        answer = letters[(letters.index(question.answer) - turn) % len(letters)]
        text = _text(question.facts["stem"], options)
        facts = {**question.facts, "options": options}
        found.append(
            replace(question, id=f"{question.id}~{turn}", text=text, answer=answer, facts=facts)
        )
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def letter(reply: str, options: Mapping[str, str], empty: str | None = EMPTY) -> str | None:
    """The letter of a reply: its only or first character, else that of the first option whose text it contains.

    A reply without a match is returned unchanged; an empty one counts as `empty`.
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
    empty: Literal["A", "B", "C", "D"] | None = None,
    circular: bool = False,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id. An empty reply is wrong by default; `empty: C` is the official script's rule.

    `circular`: `overall` is the share of questions answered correctly in all rotations; ValueError unless rotations
    were sampled. `vanilla`, `circular` (if sampled) and both treatments of empty replies are always reported.
    `reader: careful` parses with `careful.letter`; scores of both readers and their disagreements are reported.
    """
    coverage, rows = answered("mmbench", asked, answers, partial)
    turned = any(question.id != question.facts["of"] for question in asked)
    if circular and not turned:
        raise ValueError(
            "benchmarks.mmbench.options.circular: rotations were not sampled; set benchmarks.mmbench.rotations"
        )
    whole = _groups(asked)
    shown: dict[str, float | None] = {}
    for name, filled in (("empty_is_wrong", None), ("empty_is_c", EMPTY)):
        right = _right(rows, "published", filled)
        shown[name] = _percent({n: v for n, v in right.items() if n in whole})
        shown |= {f"circular.{name}": _percent(_circular(whole, right))} if turned else {}
    for name in careful.READERS:
        right = _right(rows, name, empty)
        values = _circular(whole, right) if circular else {n: right[n] for n in whole if n in right}
        shown[f"{name}_reader"] = _percent(values)
    right = _right(rows, reader, empty)
    shown["vanilla"] = _percent({n: v for n, v in right.items() if n in whole})
    shown |= {"circular": _percent(_circular(whole, right))} if turned else {}
    shown["overall"] = shown["circular" if circular else "vanilla"]
    scores = _circular(whole, right) if circular else {n: right[n] for n in whole if n in right}
    kinds = {question.id: question.kind for question in asked}
    items = [{"id": n, "task": kinds[n], "score": float(value)} for n, value in scores.items()]
    limits = interval(("mmbench", n, 100.0 * value) for n, value in scores.items())
    notes = {"empty": empty, "circular": circular, "reader": reader}
    differ = [q.id for q, r in rows if len({_chosen(q, r, n, empty) for n in careful.READERS}) > 1]
    doubtful = {readings.DIFFERENT: differ}
    return Graded(shown, items, coverage, {"overall": limits} if limits else {}, notes, doubtful)


def _right(rows: Sequence[tuple[Question, str]], reader: str, empty: str | None) -> dict[str, bool]:
    return {q.id: _chosen(q, r, reader, empty) == q.answer for q, r in rows}


def _chosen(question: Question, reply: str, reader: str, empty: str | None) -> str | None:
    """The option that a reader finds; None if it finds none."""
    return choice(reply, question.facts["options"], reader, empty)


def choice(
    reply: str, options: Mapping[str, str], reader: str, empty: str | None = None
) -> str | None:
    """The option's letter by the published letter rule or the careful reader; None if there is none."""
    if reader == "careful":
        return careful.letter(reply, options)
    found = letter(reply, options, empty)
    return found if found in options else None


def _groups(asked: Sequence[Question]) -> dict[str, list[str]]:
    """Ids of all rotations by the id of the original question."""
    found: dict[str, list[str]] = {}
    for question in asked:
        found.setdefault(question.facts["of"], []).append(question.id)
    return found


def _circular(groups: Mapping[str, Sequence[str]], right: Mapping[str, bool]) -> dict[str, bool]:
    """Whether every rotation is correct, for questions with all rotations answered."""
    return {
        name: all(right[turn] for turn in turns)
        for name, turns in groups.items()
        if all(turn in right for turn in turns)
    }


def _percent(scores: Mapping[str, bool]) -> float | None:
    share = mean([float(value) for value in scores.values()])
    return None if share is None else 100 * share
