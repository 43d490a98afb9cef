"""MME: 2,374 yes/no questions, two per image, 14 tasks (reference/benchmarks.md 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, interval
from reca.evaluation.reading import Tables, answered, demand_option, hub_rows
from reca.inference.items import Question

VERSION = "InternVL rules"
ROLES = ("questions",)
TABLES = Tables("data", "test")
PER_PICTURE = TOGETHER = 2  # questions, which are scored as a pair, too
NEEDED = ("question_id", "question", "answer", "category")  # columns of the hub's tables
SUFFIX = " Answer the question using a single word or phrase."
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
FLAVOURS = ("internvl", "lmms_eval")
_CHINESE = (("不是", "no"), ("是", "yes"), ("否", "no"))
_CJK = re.compile(r"[\u4e00-\u9fff]+")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions with the suffix of the official script; the image id groups the two questions of an image."""
    found = []
    seen: dict[str, int] = {}
    rows = hub_rows(data["questions"], "MME", NEEDED, TABLES, _id)
    for path, row in rows:
        picture = str(row["question_id"])
        seen[picture] = seen.get(picture, -1) + 1
        if seen[picture] == PER_PICTURE:
            raise ValueError(
                f"{path}: {picture} has more than {PER_PICTURE} questions; fetch the pinned revision of its source "
                "into a folder of its own"
            )
        demand_option(path, picture, str(row["answer"]).strip().lower(), ("yes", "no"))
        text = str(row["question"]).replace(" Please answer yes or no.", "") + SUFFIX
        identity = f"{picture}#{seen[picture]}"
        found.append(Question(identity, picture, text, str(row["answer"]), str(row["category"])))
    return found


def _id(row: Mapping[str, Any]) -> str:
    return f"{row['question_id']}: {row['question']} {row['answer']}"


# ---- scores: pure ----------------------------------------------------------------------------------
def postprocess(reply: str) -> str:
    """A reply cleaned like in the official script: one line, lower case, Chinese yes/no translated, no other CJK."""
    text = reply.replace("\n", "")
    for chinese, english in _CHINESE:
        text = text.replace(chinese, english)
    return _CJK.sub("", text.lower().replace("true", "yes").replace("false", "no"))


def label(text: str, flavour: str = "internvl") -> str:
    """`yes`, `no` or `other` for a cleaned reply."""
    if flavour == "lmms_eval":
        text = text.lower().strip().replace(".", "")
        text = {"y": "yes", "n": "no"}.get(text, text)
    if text in ("yes", "no"):
        return text
    for word in ("yes", "no"):
        if word in text[:4]:
            return word
    return "other"


def read(reply: str, reader: str, flavour: str = "internvl") -> str:
    """`yes`, `no` or `other` for a raw reply, by the official cleaning and rule or by the careful reader."""
    if reader == "careful":
        return careful.yes_or_no(reply) or "other"
    return label(postprocess(reply), flavour)


def task_score(rows: Sequence[tuple[str, str, str]], flavour: str = "internvl") -> float:
    """100 x (accuracy + share of images with both questions correct), from rows (image, truth, cleaned reply)."""
    pictures: dict[str, list[bool]] = {}
    for picture, truth, reply in rows:
        right = label(reply, flavour) == truth.strip().lower()
        pictures.setdefault(picture, []).append(right)
    every = [right for found in pictures.values() for right in found]
    both = [all(found) for found in pictures.values()]
    return 100 * sum(every) / len(every) + 100 * sum(both) / len(both)


def summary(
    tasks: Mapping[str, Sequence[tuple[str, str, str]]], flavour: str = "internvl"
) -> dict[str, float]:
    """Scores of every task, `perception` (at most 2000), `cognition` (at most 800) and `total`."""
    scores = {name: task_score(rows, flavour) for name, rows in tasks.items()}
    perception = sum(scores.get(name, 0.0) for name in PERCEPTION)
    cognition = sum(scores.get(name, 0.0) for name in COGNITION)
    return {
        **{f"tasks.{name}": value for name, value in scores.items()},
        "perception": perception,
        "cognition": cognition,
        "total": perception + cognition,
    }


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    flavour: Literal["internvl", "lmms_eval"] = "internvl",
    overall: Literal["total", "perception", "cognition"] = "total",
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; scores of both flavours are reported.

    `reader: careful` parses with `careful.yes_or_no`; scores of both readers and their disagreements are reported.
    """
    coverage, rows = answered("mme", asked, answers, partial)
    pairs: dict[tuple[str, str], list[bool]] = {}
    items: list[dict[str, Any]] = []
    for question, reply in rows:
        right = read(reply, reader, flavour) == question.answer.strip().lower()
        pairs.setdefault((question.kind, question.image_id), []).append(right)
        items.append({"id": question.id, "task": question.kind, "score": float(right)})
    by = {name: summary(_tasks(rows, name), flavour) for name in careful.READERS}
    found, other = by[reader], next(name for name in FLAVOURS if name != flavour)
    flavoured = summary(_tasks(rows, "published"), other)
    totals = {f"{other}.{k}": v for k, v in flavoured.items() if "." not in k}
    totals |= {f"{name}_reader": values[overall] for name, values in by.items()}
    values = [
        (task, picture, 100 * sum(right) / len(right) + 100 * all(right))
        for (task, picture), right in pairs.items()
    ]
    sums = {"total": PERCEPTION + COGNITION, "perception": PERCEPTION, "cognition": COGNITION}
    limits = {
        name: interval([row for row in values if row[0] in parts], dict.fromkeys(parts, 1.0))
        for name, parts in sums.items()
    }
    limits["overall"] = limits.get(overall)
    shown: dict[str, float | None] = {"overall": found[overall], **found, **totals}
    differ = [q.id for q, r in rows if read(r, "published", flavour) != read(r, "careful", flavour)]
    return Graded(shown, items, coverage, {k: v for k, v in limits.items() if v},
                  {"flavour": flavour, "overall": overall, "reader": reader},
                  {readings.DIFFERENT: differ})  # fmt: skip


def _tasks(
    rows: Sequence[tuple[Question, str]], reader: str
) -> dict[str, list[tuple[str, str, str]]]:
    """Rows (image, truth, cleaned reply) by task; the careful reader's replies are `yes`, `no` or `other`."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for question, reply in rows:
        clean = read(reply, reader) if reader == "careful" else postprocess(reply)
        found.setdefault(question.kind, []).append((question.image_id, question.answer, clean))
    return found
