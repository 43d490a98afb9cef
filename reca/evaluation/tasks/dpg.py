"""DPG-Bench: dense prompts scored by yes/no questions with dependencies (reference/benchmarks.md 3).

A question row is a line of `dpg_bench.csv`: item_id, proposition_id, dependency ("0" or "3, 4"), tuple,
question_natural_language. An answer is correct only if it is exactly `yes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.documents import read_json, texts
from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, coverage_of, interval, mean
from reca.evaluation.reading import Ids, csv_rows, demand_columns, one_file
from reca.inference.items import Prompt

VERSION = "ELLA 3c228f1"
IMAGES_PER_PROMPT = 4
YES = "yes"
ROLES = ("prompts", "questions")
NEEDED = (
    "item_id",
    "proposition_id",
    "dependency",
    "tuple",
    "question_natural_language",
)  # columns

Row = Mapping[str, Any]
Answers = Mapping[int, str]  # of one image: proposition id -> answer


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The 1,065 prompts of prompts.json in the folder of role `prompts`; the id is the item name without `.txt`."""
    path, ids = one_file(data["prompts"], "prompts.json", "the source of DPG-Bench"), Ids()
    found = []
    for file, text in texts(read_json(path), path).items():
        name = file.removesuffix(".txt")
        ids.add(name, path)
        found.append(Prompt(name, text, "dpg"))
    return found


def questions(data: Mapping[str, Path]) -> list[dict[str, Any]]:
    """All rows of the question table, in file order; ValueError names the line of a damaged row."""
    path = one_file(data["questions"], "dpg_bench.csv", "the source of DPG-Bench")
    rows, ids = [], Ids()
    for number, row in csv_rows(path):
        demand_columns(path, list(row), NEEDED)
        try:
            rows.append({**row, "proposition_id": int(row["proposition_id"])})
            parents(row)
            name = f"{row['item_id']}, proposition {int(row['proposition_id'])}"
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a question ({error}); fetch its source again"
            ) from error
        ids.add(name, path)
    return rows


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of an image in the layout of the authors' scorer."""
    return f"{prompt.id}_{sample}.jpg"


def grid_name(prompt: Prompt) -> str:
    """The file name of a 2 x 2 grid of a prompt's four images, the layout of the original scorer."""
    return f"{prompt.id}.png"


# ---- scores: pure ----------------------------------------------------------------------------------
def parents(row: Row) -> list[int]:
    """The proposition ids that a question depends on; 0 in the table means none."""
    numbers = (int(part) for part in str(row["dependency"]).split(",") if part.strip())
    return [number for number in numbers if number != 0]


def category(row: Row) -> str:
    """The level 2 category, the text before the parenthesis in the tuple; level 1 is its part before the dash."""
    return str(row["tuple"]).split("(")[0].strip()


def raw_scores(rows: Sequence[Row], answers: Answers) -> dict[int, float]:
    """Scores by proposition, before dependencies: 1 for `yes`, 0 for anything else."""
    return {r["proposition_id"]: float(answers[int(r["proposition_id"])] == YES) for r in rows}


def picture(rows: Sequence[Row], answers: Answers) -> float:
    """The score of one image: the mean over questions, of which those with a parent at 0 count 0, in file order.

    Raises:
        KeyError: an answer is missing, or a question depends on one that the item does not have.
    """
    scores = raw_scores(rows, answers)
    for row in rows:
        if any(scores[parent] == 0 for parent in parents(row)):
            scores[row["proposition_id"]] = 0.0
    return sum(scores.values()) / len(scores)


def by_item(rows: Sequence[Row], first_row_bug: bool = False) -> dict[str, list[Row]]:
    """Questions by item; `first_row_bug` drops the first row of the table, as the official reader does."""
    found: dict[str, list[Row]] = {}
    for row in rows[1:] if first_row_bug else rows:
        found.setdefault(row["item_id"], []).append(row)
    return found


def _orphans(items: Mapping[str, Sequence[Row]]) -> list[str]:
    """The items with a question whose parent is missing; the official script leaves them out in silence."""
    found = []
    for name, rows in items.items():
        there = {row["proposition_id"] for row in rows}
        if not all(there.issuperset(parents(row)) for row in rows):
            found.append(name)
    return found


def score_items(
    items: Mapping[str, Sequence[Row]], answers: Mapping[str, Sequence[Answers]]
) -> tuple[dict[str, list[float]], list[str]]:
    """Scores by item and image, and the items that cannot be scored because a parent or an answer is missing."""
    scores: dict[str, list[float]] = {}
    failed = []
    for name, rows in items.items():
        try:
            scores[name] = [picture(rows, given) for given in answers[name]]
        except KeyError:
            failed.append(name)
    return scores, failed


def categories(
    items: Mapping[str, Sequence[Row]], answers: Mapping[str, Sequence[Answers]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Level 1 and level 2 percentages, from the raw answers for each item's last image, like the official code."""
    first: dict[str, list[float]] = defaultdict(list)
    second: dict[str, list[float]] = defaultdict(list)
    for name, rows in items.items():
        raw = raw_scores(rows, answers[name][-1])
        names = {row["proposition_id"]: category(row) for row in rows}
        for proposition, score in raw.items():
            second[names[proposition]].append(score)
            first[names[proposition].split("-")[0].strip()].append(score)
    return _percent(first), _percent(second)


def _percent(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


def summary(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answers]],
    first_row_bug: bool = False,
) -> dict[str, Any]:
    """`overall` (0..100), `l1`, `l2`, image scores `per_item`, and the excluded items `failed`.

    By default items fail only if answers are missing; `first_row_bug` reproduces the official reader, which drops the
    first row of the table. An item with an empty list of answers has no complete image and is left out.
    """
    asked = by_item(rows, first_row_bug)
    items = {name: of for name, of in asked.items() if answers.get(name) != []}
    scores, failed = score_items(items, answers)
    scored = {name: rows for name, rows in items.items() if name in scores}
    l1, l2 = categories(scored, answers)
    means = [sum(values) / len(values) for values in scores.values()]
    overall = mean(means)
    return {
        "overall": None if overall is None else 100 * overall,
        "l1": l1,
        "l2": l2,
        "per_item": scores,
        "failed": failed,
    }


def grade(
    items: Sequence[Prompt],
    rows: Sequence[Row],
    evidence: Iterable[Mapping[str, Any]],
    *,
    samples: int,
    first_row_bug: bool = False,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers `{"id", "sample", "question": proposition, "answer"}`, reported with and without the first row.

    The official rule accepts only the string `yes`; `reader: careful` accepts what `careful.yes_or_no` parses as yes.
    Disagreements between the two are counted in either case.
    """
    found: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    differ: list[str] = []
    for row in evidence:
        said, read = row["answer"], careful.yes_or_no(row["answer"]) or ""
        if (said == YES) != (read == YES):
            differ.append(f"{row['id']}_{row['sample']}/{row['question']}")
        answer = read if reader == "careful" else said
        found[row["id"], int(row["sample"])][int(row["question"])] = answer
    asked = by_item([row for row in rows if row["item_id"] in {item.id for item in items}])
    unasked = [item.id for item in items if item.id not in asked]
    if unasked:
        raise ValueError(
            f"dpg: {len(unasked)} prompts have no questions, for instance {unasked[0]}; fetch the source of DPG-Bench "
            "again"
        )
    orphans = _orphans(asked)
    if orphans and not partial:
        raise ValueError(
            f"dpg: {len(orphans)} prompts have a question whose parent is not among their questions, for instance "
            f"{orphans[0]}; fetch the source of DPG-Bench again, or leave them out with options.partial"
        )
    whole = {
        (name, k): all(row["proposition_id"] in found[name, k] for row in asked[name])
        for name in asked
        for k in range(samples)
    }
    coverage = coverage_of(
        (f"{n}_{k}", "failed" if n in orphans else "scored" if w else "missing")
        for (n, k), w in whole.items()
    )
    coverage.demand("dpg", partial)
    names = dict.fromkeys(
        row["item_id"] for row in rows
    )  # also of prompts that this run leaves out
    answers = {n: [found[n, k] for k in range(samples) if whole.get((n, k))] for n in names}
    repaired, bug = (summary(rows, answers, official) for official in (False, True))
    chosen = bug if first_row_bug else repaired
    shown = {
        "overall": chosen["overall"],
        "overall_repaired": repaired["overall"],
        "overall_first_row_bug": bug["overall"],
        **{f"l1.{name}": value for name, value in chosen["l1"].items()},
        **{f"l2.{name}": value for name, value in chosen["l2"].items()},
    }
    graded: list[dict[str, Any]] = [
        {"id": n, "sample": k, "score": value}
        for n, values in chosen["per_item"].items()
        for k, value in enumerate(values)
    ]
    limits = interval(("dpg", row["id"], 100 * row["score"]) for row in graded)
    notes = {
        "failed_with_first_row_bug": bug["failed"],
        "first_row_bug": first_row_bug,
        "reader": reader,
    }
    doubtful = {readings.DIFFERENT: differ}
    return Graded(shown, graded, coverage, {"overall": limits} if limits else {}, notes, doubtful)
