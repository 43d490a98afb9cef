"""POPE: does an image show an object, with random, popular and adversarial negatives (reference/benchmarks.md 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, by_category, interval, mean
from reca.evaluation.reading import Tables, answered, demand_option, hub_rows
from reca.inference.items import Question

VERSION = "InternVL rules"
ROLES = ("questions",)
TABLES = Tables("data", "test")  # the folder `Full` has the same rows, by category
NEEDED = (
    "question_id",
    "image_source",
    "question",
    "answer",
    "category",
)  # columns of the hub's tables
SUFFIX = "\nAnswer the question using a single word or phrase."
FILES = ("random", "popular", "adversarial")
_NO = {"No", "not", "no"}


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """All questions of the three categories; `kind` is the category."""
    rows = hub_rows(data["questions"], "POPE", NEEDED, TABLES, _id)
    found = []
    for path, row in rows:
        name, answer = _id(row), str(row["answer"]).strip().lower()
        demand_option(path, name, answer, ("yes", "no"))
        text = str(row["question"]) + SUFFIX
        found.append(Question(name, str(row["image_source"]), text, answer, str(row["category"])))
    return found


def _id(row: Mapping[str, Any]) -> str:
    return f"{row['category']}-{row['question_id']}"


# ---- scores: pure ----------------------------------------------------------------------------------
def says_yes(reply: str) -> bool:
    """The official rule: a reply says yes unless its first sentence contains the word No, not or no."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return _NO.isdisjoint(words)


def read(reply: str, reader: str) -> bool | None:
    """Whether a reply says yes, by the official or the careful reader; None if the latter finds neither yes nor no."""
    if reader == "careful":
        found = careful.yes_or_no(reply)
        return None if found is None else found == "yes"
    return says_yes(reply)


def summary(
    labels: Sequence[str], replies: Sequence[str], reader: str = "published"
) -> dict[str, float]:
    """Accuracy, precision, recall, F1 of yes, share of yes and the four counts of one category.

    A reply that the careful reader parses as neither is wrong: it counts only as `unread`, and recall is still over
    all questions with answer yes.
    """
    said = [read(reply, reader) for reply in replies]
    truth = [label == "yes" for label in labels]
    pairs = list(zip(truth, said, strict=True))
    tp, fp = pairs.count((True, True)), pairs.count((False, True))
    tn, fn = pairs.count((False, False)), pairs.count((True, False))
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, sum(truth))
    unread = {"unread": said.count(None)} if reader == "careful" else {}
    return unread | {
        "accuracy": _ratio(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(said.count(True), len(said)),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def lmms_eval_summary(labels: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    """The lmms-eval variant: only `yes` or `no` is an answer, ignoring case and surrounding whitespace."""
    given = [reply.lower().strip() for reply in replies]
    pairs = list(zip(labels, given, strict=True))
    tp, fp, fn = (pairs.count(p) for p in (("yes", "yes"), ("no", "yes"), ("yes", "no")))
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "accuracy": _ratio(sum(label == reply for label, reply in pairs), len(pairs)),
        "f1": _ratio(2 * precision * recall, precision + recall),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean_f1(groups: Mapping[str, Sequence[tuple[str, str]]], reader: str) -> float | None:
    files = [
        summary([label for label, _ in pairs], [reply for _, reply in pairs], reader)["f1"]
        for pairs in groups.values()
    ]
    found = mean(files)
    return None if found is None else 100 * found


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the mean F1 of the categories, in percent.

    `reader: careful` parses with `careful.yes_or_no`; scores of both readers and their disagreements are reported.
    """
    coverage, rows = answered("pope", asked, answers, partial)
    shown: dict[str, float | None] = {}
    groups = by_category((q.kind, (q.answer, reply)) for q, reply in rows)
    for name, pairs in groups.items():
        file = summary([label for label, _ in pairs], [reply for _, reply in pairs], reader)
        shown |= {f"{name}.{k}": v for k, v in file.items()}
    labels, replies = [q.answer for q, _ in rows], [reply for _, reply in rows]
    shown |= {f"lmms_eval.{k}": v for k, v in lmms_eval_summary(labels, replies).items()}
    items: list[dict[str, Any]] = [
        {"id": q.id, "task": q.kind, "score": float(read(reply, reader) is (q.answer == "yes"))}
        for q, reply in rows
    ]
    accuracy = interval((row["task"], row["id"], 100 * row["score"]) for row in items)
    shown["accuracy"] = mean([100 * float(shown[f"{n}.accuracy"] or 0.0) for n in groups])
    shown |= {f"{name}_reader": _mean_f1(groups, name) for name in careful.READERS}
    shown["overall"] = shown[f"{reader}_reader"]
    differ = [q.id for q, reply in rows if read(reply, "published") is not read(reply, "careful")]
    return Graded(
        shown, items, coverage, {"accuracy": accuracy} if accuracy else {}, {"reader": reader},
        {readings.DIFFERENT: differ},
    )  # fmt: skip
