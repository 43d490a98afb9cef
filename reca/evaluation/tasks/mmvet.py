"""MM-Vet: 218 open questions, each answer graded 0..1 by a language model (reference/benchmarks.md 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.documents import fields, read_json
from reca.evaluation.graded import Graded, by_category, coverage_of, interval, mean
from reca.evaluation.judges.requests import JudgeRequest
from reca.evaluation.reading import Tables, hub_rows
from reca.inference.items import Question

VERSION = "few-shot prompt 75571cf"
ROLES = ("questions", "judge")
TABLES = Tables("data", "test")
NEEDED = ("question_id", "question", "answer", "capability")  # columns of the hub's tables
JUDGE_LIMITS = {"temperature": 0.0, "max_tokens": 8}
_NUMBER = re.compile(
    r"(?<![\d.])(?:0(?:\.\d++)?+|1(?:\.0++)?+)(?![\d.]*\d)"
)  # possessive, so linear in the reply
_ALONE = re.compile(r"[\s|]*[\d.]+(?:[\s|][\s|.]*)?")


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions; `kind` is the combination of capabilities that a question tests."""
    rows = hub_rows(
        data["questions"], "MM-Vet", NEEDED, TABLES, lambda row: str(row["question_id"])
    )
    return [
        Question(
            str(row["question_id"]),
            str(row["question_id"]),
            str(row["question"]),
            str(row["answer"]),
            str(row.get("capability") or "mmvet"),
        )
        for _, row in rows
    ]


def requests(
    asked: Sequence[Question], answers: Mapping[str, str], data: Mapping[str, Path]
) -> list[JudgeRequest]:
    """One request per answered question: the few-shot table with one more row."""
    path = Path(data["judge"]) / "mmvet_judge_prompt.json"
    prompt = fields(read_json(path), path, prompt=str)["prompt"]
    return [
        JudgeRequest(q.id, (prompt + row(q.text, q.answer, answers[q.id]),))
        for q in asked
        if q.id in answers
    ]


def row(question: str, truth: str, prediction: str) -> str:
    """The last row of the table, on one line, so that a prediction cannot add rows."""
    truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    cells = (" ".join(text.split()).replace("|", "/") for text in (question, truth, prediction))
    return " | ".join(cells) + " |"


# ---- scores: pure ----------------------------------------------------------------------------------
def score(reply: str) -> float | None:
    """The number from 0 to 1 in a reply; None for none or several."""
    found = _NUMBER.findall(reply)
    return float(found[0]) if len(found) == 1 and _ALONE.fullmatch(reply) else None


def grade(
    asked: Sequence[Question],
    verdicts: Mapping[str, tuple[str, str | None]],
    *,
    partial: bool = False,
) -> Graded:
    """Grade the judge's replies by question id; `overall` is the mean in percent, and each capability has its own."""
    statuses: list[tuple[str, str]] = []
    items: list[dict[str, Any]] = []
    for question in asked:
        status, reply = verdicts.get(question.id, ("missing", None))
        value = score(reply) if status == "reply" and reply is not None else None
        if value is not None:
            items.append({"id": question.id, "task": question.kind, "score": value})
        status = "unparsable" if status == "reply" else status
        statuses.append((question.id, "scored" if value is not None else status))
    coverage = coverage_of(statuses)
    coverage.demand("mmvet", partial)
    share = mean([row["score"] for row in items])
    single = [(c, row["score"]) for row in items for c in str(row["task"]).split(",")]
    shown: dict[str, float | None] = {"overall": None if share is None else 100 * share}
    shown |= {f"capabilities.{n}": 100 * sum(v) / len(v) for n, v in by_category(single).items()}
    limits = interval(("mmvet", row["id"], 100 * row["score"]) for row in items)
    return Graded(shown, items, coverage, {"overall": limits} if limits else {})
