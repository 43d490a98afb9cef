"""ImgEdit (Basic, single turn): 737 edits of nine types, judged on three scales of 1 to 5
(reference/benchmarks.md 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.documents import fields, read_json
from reca.evaluation import readings
from reca.evaluation.graded import Graded, by_category, coverage_of, interval
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.reading import one_file
from reca.inference.items import Prompt

VERSION = "Basic b250aa1"
IMAGES_PER_PROMPT = 1
ROLES = ("prompts", "images")
JUDGE_LIMITS: dict[str, float] = {}  # temperature and length unset: the endpoint's defaults
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
SCALES = 3  # that every type's prompt names
LOWEST, HIGHEST = 1, 5
_DIGITS = 300  # of a longer number these: far out of range as well, and still a float


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The edits; `facts["source"]` is the source picture's path below the role `images`."""
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
    """The file of a result in the official layout."""
    return f"{prompt.id}.png"


def requests(
    items: Sequence[Prompt],
    pictures: Mapping[tuple[str, int], bytes],
    data: Mapping[str, Path],
    sources: Mapping[str, bytes],
) -> list[JudgeRequest]:
    """One request per edit: the type's prompt, the source picture, the result."""
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
    """What the official rule reads: every line `Name: digits`, whatever the name; non-ASCII digits count.

    Digits that are no number (superscripts, on which the official code crashes) are not read.
    """
    found = []
    for line in reply.split("\n"):
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdigit() and parts[1].isdecimal():
            found.append(int(parts[1][:_DIGITS]))
    return found


def parse(reply: str) -> float | None:
    """The official sample score: the mean of all numbers, to two decimals; None where there is none."""
    found = numbers(reply)
    return round(sum(found) / len(found), 2) if found else None


def score(reply: str) -> float | None:
    """As `parse`, but None also where a number is no score (a line `Total: 12`): never guessed."""
    inside = all(LOWEST <= number <= HIGHEST for number in numbers(reply))
    return parse(reply) if inside else None


def doubts(reply: str) -> list[str]:
    """`incomplete` for one or two numbers where three scales were asked for, `inexact` for more than three."""
    count = len(numbers(reply))
    if count > SCALES:
        return [readings.INEXACT]
    return [readings.INCOMPLETE] if 0 < count < SCALES else []


def summary(scored: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    """Per type and overall from (type, sample score), all to two decimals as officially.

    `overall_samples` is the authors' mean over samples; `overall_types` the mean of the nine types, which
    is closer to the paper's column. An edit of no known type counts in the mean over samples alone.
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
    overall: str = "types",
    lenient: bool = False,
    partial: bool = False,
) -> Graded:
    """Grade replies by edit key. `lenient` takes any number as the official parser does; both are shown."""
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
