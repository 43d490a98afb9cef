"""T2I-CompBench (paper v4): 2,670 compositional prompts, scored 0..100 by Qwen2.5-VL (reference/benchmarks.md 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reca.core.documents import fields, read_json, rows
from reca.evaluation import readings
from reca.evaluation.graded import Graded, by_category, complete_mean, coverage_of, interval
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.reading import Ids, one_file
from reca.inference.items import Prompt

VERSION = "SRUM a53ba18"
IMAGES_PER_PROMPT = 1
ROLES = ("prompts", "judge")
JUDGE_LIMITS = {"temperature": 0.0, "max_tokens": 512}
BASE = ("color", "shape", "texture", "spatial", "non-spatial", "numeracy", "3d spatial")
COMPLEX = ("complex", "complex action", "complex spatial")
HIGHEST = 100
_FENCE = re.compile(r"```(?:json)?")
_BLOCK = re.compile(r'\{[^{}]*"score"\s*:\s*\d+[^{}]*\}')
_DIGITS = 300  # longer numbers are truncated: still out of range, and below int()'s limit of 4300
_SCORE = re.compile(r'"score"\s*:\s*"?(\d+)')


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The prompts; their ids are question ids, their categories have spaces like in the official means."""
    path, ids = one_file(data["prompts"], "val_comp.json", "source t2i-compbench"), Ids()
    kinds = {"Question_id": object, "Question": str, "Category": str}
    found = []
    for row in rows(read_json(path), path, **kinds):
        name = str(row["Question_id"])
        ids.add(name, path)
        found.append(Prompt(name, row["Question"], row["Category"].replace("_", " ")))
    return found


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of an image in the official layout."""
    return f"{prompt.id}.png"


def requests(
    items: Sequence[Prompt], pictures: Mapping[tuple[str, int], bytes], data: Mapping[str, Path]
) -> list[JudgeRequest]:
    """One request per image: the image first, then the text."""
    path = Path(data["judge"]) / "judge_prompt.json"
    text = fields(read_json(path), path, prompt=str)["prompt"]
    return [
        JudgeRequest(
            item.id,
            (Picture(pictures[item.id, 0], "png"), text.replace("<PROMPT>", item.text)),
        )
        for item in items
        if (item.id, 0) in pictures
    ]


# ---- scores: pure ----------------------------------------------------------------------------------
def parse(reply: str) -> int | None:
    """The official rule: the first JSON object with a score, else the number after "score", else None."""
    text = _FENCE.sub("", reply)
    block = _BLOCK.search(text)
    if block:
        try:
            return int(float(json.loads(block[0])["score"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass
    found = _SCORE.search(text)
    return int(found[1][:_DIGITS]) if found else None


def score(reply: str) -> int | None:
    """Like `parse`, but None outside 0..100."""
    found = parse(reply)
    return found if found is not None and found <= HIGHEST else None


def doubts(reply: str) -> list[str]:
    """`inexact` if the number is truncated (`0.85` is parsed as 0, `85/100` as 85), or there are several."""
    matches = list(_SCORE.finditer(_FENCE.sub("", reply)))
    if parse(reply) is None:
        return []
    cut = any(readings.goes_on(match.string, match.end()) for match in matches[:1])
    return [readings.INEXACT] if cut or len({match[1] for match in matches}) > 1 else []


def overall(means: Mapping[str, float | None]) -> dict[str, float | None]:
    """The three aggregations of the ten category means (0..100).

    `complex_composite`: mean of the three complex categories; `overall_ten`: mean of all ten, which matches 6 of 8 rows
    of the paper's table; `overall_eight`: mean of the seven base categories and the composite, like in the script.
    """
    composite = complete_mean(means.get(name) for name in COMPLEX)
    return {
        "complex_composite": composite,
        "overall_ten": complete_mean(means.get(name) for name in (*BASE, *COMPLEX)),
        "overall_eight": complete_mean([*(means.get(name) for name in BASE), composite]),
    }


def grade(
    items: Sequence[Prompt],
    verdicts: Mapping[str, tuple[str, str | None]],
    *,
    aggregation: Literal["ten", "eight"] = "ten",
    partial: bool = False,
) -> Graded:
    """Grade replies by question id; unparsable ones are excluded and counted, instead of being scored as -1."""
    statuses: list[tuple[str, str]] = []
    graded: list[dict[str, Any]] = []
    for item in items:
        status, reply = verdicts.get(item.id, ("missing", None))
        value = score(reply) if status == "reply" and reply is not None else None
        if value is not None:
            graded.append({"id": item.id, "task": item.task, "score": value})
        status = "unparsable" if status == "reply" else status
        statuses.append((item.id, "scored" if value is not None else status))
    coverage = coverage_of(statuses)
    coverage.demand("t2i_compbench", partial)
    groups = by_category((row["task"], float(row["score"])) for row in graded)
    means: dict[str, float | None] = {n: sum(v) / len(v) for n, v in groups.items()}
    found = overall(means)
    shown = {"overall": found[f"overall_{aggregation}"], **found}
    shown |= {f"categories.{name}": value for name, value in means.items()}
    ten = interval((row["task"], row["id"], row["score"]) for row in graded)
    limits = (
        {"overall_ten": ten} | ({"overall": ten} if aggregation == "ten" else {}) if ten else {}
    )
    doubtful = readings.of_verdicts(verdicts, doubts)
    return Graded(shown, graded, coverage, limits, {"aggregation": aggregation}, doubtful)
