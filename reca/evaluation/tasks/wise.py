"""WISE: prompts that require world knowledge, judged for consistency, realism and aesthetics
(reference/benchmarks.md 4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reca.core.documents import fields, read_json, rows
from reca.evaluation import readings
from reca.evaluation.graded import Graded, by_category, complete_mean, coverage_of, interval
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.reading import Ids, one_file
from reca.inference.items import Prompt

VERSION = "WISE_legacy eb51174"
IMAGES_PER_PROMPT = 1
ROLES = ("prompts", "judge")
JUDGE_LIMITS = {"temperature": 0.0, "max_tokens": 2000}
FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
NAMES = ("consistency", "realism", "aesthetic_quality")
WEIGHTS = (0.7, 0.2, 0.1)
SENTINEL = 9.9  # the official script's value for a score that it cannot parse
CATEGORIES = ("Cultural", "Time", "Space", "Biology", "Physics", "Chemistry")
_WISE_PAPER = dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True))
# By prompt id: cultural 1-400, time 401-567, space 568-700, then 100 each.
_LAST = {
    "Cultural": 400,
    "Time": 567,
    "Space": 700,
    "Biology": 800,
    "Physics": 900,
    "Chemistry": 1000,
}
_FILE_OF = {c: FILES[i] for i, group in enumerate((1, 2, 3)) for c in
            {1: ("Cultural",), 2: ("Time", "Space"), 3: ("Biology", "Physics", "Chemistry")}[group]}  # fmt: skip
_ROWS = dict(zip(FILES, (400, 300, 300), strict=True))
_NUMBER = r"\*{0,2}\s*[:\uff1a]?\s*(\d)"
_PATTERNS = {
    name: re.compile(r"\*{0,2}" + text + _NUMBER, re.IGNORECASE)
    for name, text in zip(NAMES, ("Consistency", "Realism", "Aesthetic Quality"), strict=True)
}


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The 1,000 prompts by id, with the explanations for the judge."""
    found, ids = [], Ids()
    for name in FILES:
        path = one_file(data["prompts"], f"{name}.json", "source wise")
        kinds = {"prompt_id": object, "Prompt": str, "Explanation": str, "Subcategory": str}
        for row in rows(read_json(path), path, **kinds):
            number = int(str(row["prompt_id"]))
            ids.add(str(number), path)
            facts = {"explanation": row["Explanation"], "subcategory": row["Subcategory"]}
            found.append(Prompt(str(number), row["Prompt"], category(number), facts))
    return sorted(found, key=lambda prompt: int(prompt.id))


def category(prompt_id: int) -> str:
    """The category of a prompt; ValueError outside 1..1000."""
    for name, last in _LAST.items():
        if 1 <= prompt_id <= last:
            return name
    raise ValueError(f"WISE prompt id {prompt_id}: must be from 1 to 1000")


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of an image in the official layout."""
    return f"{prompt.id}.png"


def requests(
    items: Sequence[Prompt], pictures: Mapping[tuple[str, int], bytes], data: Mapping[str, Path]
) -> list[JudgeRequest]:
    """One request per image: the system text, the protocol with prompt and explanation, and the image as PNG."""
    path = Path(data["judge"]) / "judge_prompt.json"
    texts = fields(read_json(path), path, system=str, user=str)
    return [
        JudgeRequest(
            item.id,
            (
                texts["user"]
                .replace("<PROMPT>", item.text)
                .replace("<EXPLANATION>", item.facts["explanation"]),
                Picture(pictures[item.id, 0], "png"),
            ),
            system=texts["system"],
        )
        for item in items
        if (item.id, 0) in pictures
    ]


# ---- scores: pure ----------------------------------------------------------------------------------
def parse(reply: str) -> dict[str, float | None]:
    """The three scores of a reply, None for a missing one; a later match overwrites an earlier one.

    The official rules including their leniency: "10" is parsed as 1 and "2.5" as 2, and any digit is accepted;
    `scores` rejects values out of range.
    """
    found: dict[str, float | None] = {}
    for name, pattern in _PATTERNS.items():
        matches = pattern.findall(reply)
        found[name] = float(matches[-1]) if matches else None
    return found


def scores(reply: str) -> tuple[float, float, float] | None:
    """All three scores, each 0, 1 or 2; None if one is missing or out of range."""
    values = [value for value in parse(reply).values() if value is not None and value <= 2]
    return (values[0], values[1], values[2]) if len(values) == len(NAMES) else None


def doubts(reply: str) -> list[str]:
    """`incomplete` for one or two scales of three; `inexact` if a digit is part of a number, or one of several."""
    matches = [list(pattern.finditer(reply)) for pattern in _PATTERNS.values()]
    found = []
    if any(matches) and not all(matches):
        found.append(readings.INCOMPLETE)
    if any(len({m[1] for m in own}) > 1 for own in matches) or any(
        readings.goes_on(reply, m.end()) for own in matches for m in own
    ):
        found.append(readings.INEXACT)
    return found


def wiscore(consistency: float, realism: float, aesthetic_quality: float) -> float:
    """The WiScore, 0.7 consistency + 0.2 realism + 0.1 aesthetics, in 0..2."""
    values = (consistency, realism, aesthetic_quality)
    return sum(w * v for w, v in zip(WEIGHTS, values, strict=True))


def summary(
    rows: Iterable[Sequence[float]], emulate_sentinels: bool = False
) -> dict[str, float | None]:
    """Six categories (0..1) and both overall scores from rows (prompt id, consistency, realism, aesthetics).

    `overall_unweighted` is the mean of the six categories (the RecA authors' script); `overall_weighted` uses the WISE
    paper's weights 0.4 / 0.167 / 0.133 / 0.1 x 3, which for the full set is the mean over prompts.
    `emulate_sentinels`: like the official script, return None for the categories of the culture or space-time file if
    it has too few rows or a 9.9, but average the 9.9 in natural science.
    """
    kept = [(int(row[0]), *map(float, row[1:4])) for row in rows]
    refused = _refused_files(kept) if emulate_sentinels else set()
    values = by_category((category(int(i)), wiscore(c, r, a)) for i, c, r, a in kept)
    found: dict[str, float | None] = {}
    for name in CATEGORIES:
        own = values.get(name)
        found[name] = None if not own or _FILE_OF[name] in refused else sum(own) / len(own) / 2
    counts = {name: len(values.get(name, ())) for name in CATEGORIES}
    found["overall_unweighted"] = complete_mean(found[name] for name in CATEGORIES)
    found["overall_weighted"] = _weighted(found, counts)
    return found


def _refused_files(rows: Iterable[tuple[float, ...]]) -> set[str]:
    by_file = by_category((_FILE_OF[category(int(r[0]))], max(r[1:])) for r in rows)
    checked = FILES[:2]  # the official script does not check natural science
    return {f for f in checked if len(by_file.get(f, ())) < _ROWS[f] or SENTINEL in by_file[f]}


def _weighted(found: Mapping[str, float | None], counts: Mapping[str, int]) -> float | None:
    """The mean over prompts if the set is complete, else the mean with the published weights."""
    if any(found[name] is None for name in CATEGORIES):
        return None
    whole = sum(counts.values()) == sum(_ROWS.values())
    weights = {n: counts[n] / sum(counts.values()) for n in CATEGORIES} if whole else _WISE_PAPER
    return sum(weights[name] * (found[name] or 0.0) for name in CATEGORIES)


def grade(
    items: Sequence[Prompt],
    verdicts: Mapping[str, tuple[str, str | None]],
    *,
    overall: Literal["unweighted", "weighted"] = "unweighted",
    sentinels: bool = False,
    partial: bool = False,
) -> Graded:
    """Grade the judge's replies; `verdicts` maps prompt ids to (status, reply).

    `overall`: the aggregation to report as the benchmark's score; both are reported by name. `sentinels` adds the
    official script's treatment of unparsable replies as separate metrics.
    """
    statuses: list[tuple[str, str]] = []
    rows: list[tuple[float, ...]] = []
    graded: list[dict[str, Any]] = []
    for item in items:
        status, reply = verdicts.get(item.id, ("missing", None))
        read = scores(reply) if status == "reply" and reply is not None else None
        status = "scored" if read else "unparsable" if status == "reply" else status
        statuses.append((item.id, status))
        if read:
            rows.append((int(item.id), *read))
            value = wiscore(*read) / 2
            graded.append({"id": item.id, "task": item.task, "score": value, "scores": list(read)})
    coverage = coverage_of(statuses)
    coverage.demand("wise", partial)
    found = summary(rows)
    shown = {"overall": found[f"overall_{overall}"], **found}
    if sentinels:
        official = summary(_with_sentinels(items, verdicts), emulate_sentinels=True)
        shown |= {f"sentinels.{name}": value for name, value in official.items()}
    each = interval((row["task"], row["id"], row["score"]) for row in graded)
    return Graded(
        shown,
        graded,
        coverage,
        {"overall_unweighted": each} | ({"overall": each} if overall == "unweighted" else {})
        if each
        else {},
        {"overall": overall},
        readings.of_verdicts(verdicts, doubts),
    )


def _with_sentinels(
    items: Sequence[Prompt], verdicts: Mapping[str, tuple[str, str | None]]
) -> list[tuple[float, ...]]:
    rows = []
    for item in items:
        status, reply = verdicts.get(item.id, ("missing", None))
        if status != "missing":
            read = parse(reply or "")
            rows.append((float(item.id), *(SENTINEL if v is None else v for v in read.values())))
    return rows
