"""ImgEdit (Basic, single turn): 737 edits of nine types, judged on three scales from 1 to 5
(reference/benchmarks.md 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reca.core.documents import fields, read_json
from reca.evaluation import readings
from reca.evaluation.graded import Graded, by_category, coverage_of, interval
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.reading import one_file
from reca.inference.items import Prompt

VERSION = "Basic b250aa1"
IMAGES_PER_PROMPT = 1
ROLES = ("prompts", "images")
JUDGE_LIMITS: dict[str, float] = {}  # temperature and length are the endpoint's defaults
TYPES = (
    "background",
    "style",
    "adjust",
    "extract",
    "remove",
    "replace",
    "add",
    "compose",
    "action",
)
SCALES = 3  # in the judge prompt of every type
LOWEST, HIGHEST = 1, 5
_DIGITS = 300  # longer numbers are truncated: still out of range, but representable as a float


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The edits; `facts["source"]` is the path of the source image in the folder of role `images`."""
    path = one_file(data["prompts"], "singleturn.json", "source imgedit")
    edits = {
        key: fields(row, f"{path}: {key}", prompt=str, edit_type=str, id=str)
        for key, row in fields(read_json(path), path).items()
    }
    return [
        Prompt(key, row["prompt"], row["edit_type"], {"source": row["id"]})
        for key, row in edits.items()
    ]


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of a result in the official layout."""
    return f"{prompt.id}.png"


def requests(
    items: Sequence[Prompt],
    pictures: Mapping[tuple[str, int], bytes],
    data: Mapping[str, Path],
    sources: Mapping[str, bytes],
) -> list[JudgeRequest]:
    """One request per edit: the prompt of its type, the source image, the result."""
    path = one_file(data["prompts"], "judge_prompt.json", "source imgedit")
    templates = fields(read_json(path), path, **dict.fromkeys({item.task for item in items}, str))
    return [
        JudgeRequest(
            item.id,
            (
                templates[item.task].replace("<edit_prompt>", item.text),
                Picture(sources[item.id], "png"),
                Picture(pictures[item.id, 0], "png"),
            ),
        )
        for item in items
        if (item.id, 0) in pictures
    ]


# ---- scores: pure ----------------------------------------------------------------------------------
def numbers(reply: str) -> list[int]:
    """The numbers by the official rule: every line `Name: digits` with any name; non-ASCII digits count.

    Digits that are not decimal (superscripts, on which the official code crashes) are skipped.
    """
    found = []
    for line in reply.split("\n"):
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdigit() and parts[1].isdecimal():
            found.append(int(parts[1][:_DIGITS]))
    return found


def parse(reply: str) -> float | None:
    """The official sample score: the mean of all numbers, rounded to two decimals; None if there are none."""
    found = numbers(reply)
    return round(sum(found) / len(found), 2) if found else None


def score(reply: str) -> float | None:
    """Like `parse`, but None if a number cannot be a score, as in a line `Total: 12`."""
    inside = all(LOWEST <= number <= HIGHEST for number in numbers(reply))
    return parse(reply) if inside else None


def doubts(reply: str) -> list[str]:
    """`incomplete` for one or two numbers instead of three, `inexact` for more than three."""
    count = len(numbers(reply))
    if count > SCALES:
        return [readings.INEXACT]
    return [readings.INCOMPLETE] if 0 < count < SCALES else []


def summary(scored: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    """Scores by type and overall from rows (type, sample score), rounded to two decimals like the official ones.

    `overall_samples` is the authors' mean over samples; `overall_types` is the mean of the nine types, which is closer
    to the paper's column. Edits without a type count only in the mean over samples.
    """
    rows = list(scored)
    means = {name: round(sum(v) / len(v), 2) for name, v in by_category(rows).items() if name}
    values = [value for _, value in rows]
    found: dict[str, float | None] = {f"types.{name}": value for name, value in means.items()}
    found["overall_samples"] = round(sum(values) / len(values), 2) if values else None
    found["overall_types"] = round(sum(means.values()) / len(means), 2) if means else None
    return found


def grade(
    items: Sequence[Prompt],
    verdicts: Mapping[str, tuple[str, str | None]],
    *,
    overall: Literal["types", "samples"] = "types",
    lenient: bool = False,
    partial: bool = False,
) -> Graded:
    """Grade replies by edit key. `lenient` accepts any number, like the official parser; both scores are reported.

    `overall`: the aggregation to report, `types` or `samples`.
    """
    statuses: list[tuple[str, str]] = []
    graded: list[dict[str, Any]] = []
    official: list[tuple[str, float]] = []
    for item in items:
        status, reply = verdicts.get(item.id, ("missing", None))
        raw = parse(reply) if status == "reply" and reply is not None else None
        strict = score(reply) if status == "reply" and reply is not None else None
        value = raw if lenient else strict
        if raw is not None:
            official.append((item.task, raw))
        if value is not None:
            graded.append({"id": item.id, "task": item.task, "score": value})
        status = "unparsable" if status == "reply" and value is None else status
        statuses.append((item.id, "scored" if value is not None else status))
    coverage = coverage_of(statuses)
    coverage.demand("imgedit", partial)
    found = summary((row["task"], row["score"]) for row in graded)
    shown = {"overall": found[f"overall_{overall}"], **found}
    shown |= {f"lenient.{k}": v for k, v in summary(official).items() if k.startswith("overall")}
    types = interval((row["task"], row["id"], row["score"]) for row in graded)
    samples = interval(("all", row["id"], row["score"]) for row in graded)
    limits = {"overall_types": types, "overall_samples": samples}
    limits["overall"] = limits[f"overall_{overall}"]
    return Graded(
        shown,
        graded,
        coverage,
        {name: value for name, value in limits.items() if value},
        {"overall": overall, "lenient": lenient},
        readings.of_verdicts(verdicts, doubts),
    )
