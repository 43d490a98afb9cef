"""GEdit-Bench-EN: edits judged by VIEScore for semantic consistency and perceptual quality (reference/benchmarks.md 6).

Two requests per edit: SC has the source and the result, PQ only the result. A reply that cannot be parsed is requested
again, and counted if it stays unparsable; the official fallback to a random integer is only available as an option.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.documents import fields, read_json
from reca.core.rng import numpy_generator
from reca.evaluation import readings
from reca.evaluation.graded import Graded, by_category, coverage_of, interval, mean
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.reading import Ids, Tables, columns, demand_columns, demand_some, demand_text
from reca.inference.items import Prompt

VERSION = "VIEScore 570eba6"
IMAGES_PER_PROMPT = 1
ROLES = ("prompts", "judge")
TABLES = Tables("data", "train")
NEEDED = [
    "key",
    "task_type",
    "instruction",
    "instruction_language",
    "Intersection_exist",
]  # columns
JUDGE_LIMITS = {"max_tokens": 1400}
GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
HIGHEST = 10
DELIMITER = "||V^=^V||"
ASKED = 2  # numbers that the prompts of SC and PQ request
# At most 300 digits, since int() raises for more than 4300.
_LIST = re.compile(r"\[\s*([0-9]{1,300})\s*,\s*([0-9]{1,300})\s*\]")
# A list in prose is taken as the scores if the words right before it introduce it (`My ratings are`, `Score:`) without
# a negation, and the reply contains no word that indicates a scale or a refusal.
_INTRODUCED = re.compile(
    r"(?:\b(?:scores?|ratings?|output|result|answer|SC|PQ)\b|\u5206)[\s*`\"']*(?:[:=\uff1a]|\bis\b|\bare\b|\u662f|\u4e3a)"
    r"[\s*`\"':=]*\Z|\A(?:final |overall |my )?(?:scores?|ratings?)\W*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:no|not|never|without|instead)\b|n't\b|\u4e0d|\u6ca1", re.IGNORECASE)
_NO_SCORES = re.compile(
    r"\b(?:sorry|cannot|can not|can't|won't|unable|refuse|decline|scale|range)\b"
    r"|\u65e0\u6cd5|\u4e0d\u80fd|\u62b1\u6b49|\u8303\u56f4",
    re.IGNORECASE,
)
_UNQUOTED = re.compile(
    r"\{\s*score\s*:\s*(\d{1,300}(?:\.\d+)?)\s*,\s*reasoning\s*:\s*(.*)\}", re.DOTALL
)
_KEY = re.compile(r'"score"\s*:')
_NEAR = 80  # characters before a list that may introduce or negate it
_BARE_LIST = "System: output is simply a list of scores"
_BARE_NUMBER = "System: output is simply a number"


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The English edits of the Hub's parquet files; the Chinese half is dropped before anything is paid for."""
    import pyarrow.parquet as pq

    found, ids = [], Ids()
    for path in TABLES.below(data["prompts"], "GEdit-Bench"):
        demand_columns(path, columns(path), NEEDED)
        for row in pq.read_table(path, columns=NEEDED).to_pylist():
            if row["instruction_language"] == "en":
                ids.add(str(row["key"]), path)
                demand_text(path, str(row["key"]), "instruction", row["instruction"])
                facts = {"intersection": bool(row["Intersection_exist"]), "source": row["key"]}
                found.append(Prompt(str(row["key"]), row["instruction"], row["task_type"], facts))
    demand_some(data["prompts"], found)
    return found


def source_pictures(data: Mapping[str, Path]) -> dict[str, bytes]:
    """The encoded source images of the English edits by key, unchanged from the parquet files."""
    import pyarrow.parquet as pq

    found = {}
    for path in TABLES.below(data["prompts"], "GEdit-Bench"):
        needed = ["key", "instruction_language", "input_image_raw"]
        demand_columns(path, columns(path), needed)
        table = pq.read_table(path, columns=needed)
        for row in table.to_pylist():
            if row["instruction_language"] == "en":
                found[str(row["key"])] = row["input_image_raw"]["bytes"]
    return found


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of a result in the official layout, in folders by type and language."""
    return f"{prompt.task}/en/{prompt.id}.png"


def requests(
    items: Sequence[Prompt],
    pictures: Mapping[tuple[str, int], bytes],
    data: Mapping[str, Path],
    sources: Mapping[str, bytes],
) -> list[JudgeRequest]:
    """SC and PQ requests of every edit; results are resized to the source's size, images sent as JPEG of quality 75."""
    path = Path(data["judge"]) / "judge_prompts.json"
    texts = fields(read_json(path), path, SC=str, PQ=str)
    found = []
    for item in items:
        if (item.id, 0) not in pictures:
            continue
        source = Picture(sources[item.id], "jpeg")
        result = Picture(pictures[item.id, 0], "jpeg", size_of=sources[item.id])
        sc = texts["SC"].replace("<instruction>", item.text)
        found.append(JudgeRequest(f"{item.id}/SC", (sc, source, result)))
        found.append(JudgeRequest(f"{item.id}/PQ", (texts["PQ"], result)))
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def parse(reply: str) -> dict[str, Any] | None:
    """The object in a reply, with `score` as a list, by the official rules; None if they find none."""
    text = _between(reply)
    if text is None:
        return _bare(reply)
    try:
        found = json.loads(text.replace("\n", ""))
    except (ValueError, RecursionError):
        return _repaired(text.replace("\n", ""))
    if not isinstance(found, dict) or "score" not in found:
        return None
    listed = found["score"] if isinstance(found["score"], list) else [found["score"]]
    return {**found, "score": listed}


def _between(reply: str) -> str | None:
    """The text between two delimiters, else from the first to the last brace; None if there are neither."""
    if reply.count(DELIMITER) == 2:
        return reply.split(DELIMITER)[1]
    first, last = reply.find("{"), reply.rfind("}")
    return reply[first : last + 1] if -1 < first < last else None


def _bare(reply: str) -> dict[str, Any] | None:
    first, last = reply.find("["), reply.rfind("]")
    found = _LIST.fullmatch(reply, first, last + 1) if -1 < first < last else None
    if found:
        return {"score": [int(found[1]), int(found[2])], "reasoning": _BARE_LIST}
    text = reply.strip()
    if text.isdecimal() and len(text) <= 2 and int(text) <= HIGHEST:
        return {"score": [int(text)], "reasoning": _BARE_NUMBER}
    return None


def _repaired(text: str) -> dict[str, Any] | None:
    """The object with unquoted keys and one number, the only malformed JSON that is repaired; else None."""
    found = _UNQUOTED.fullmatch(text.strip())
    if not found:
        return None
    number = float(found[1]) if "." in found[1] else int(found[1])
    return {"score": [number], "reasoning": found[2].strip()}


def official_minimum(reply: str) -> float | None:
    """The smallest number of a reply like in the official script, in range or not; None unless all are numbers."""
    found = parse(reply)
    values = found["score"] if found else []
    is_number = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    return min(values) if values and all(is_number) else None


def score(reply: str) -> float | None:
    """The smallest score of a reply; None unless every score is a number from 0 to 10.

    A bare list in prose counts only if the prose introduces it as the scores; the scale `[0, 10]` in a refusal or a
    position in the image does not.
    """
    found = parse(reply)
    values = found["score"] if found else []
    if found and found.get("reasoning") == _BARE_LIST and not _states_scores(reply):
        return None
    return min(values) if values and all(map(_in_range, values)) else None


def _states_scores(reply: str) -> bool:
    """Whether the prose around a bare list, if any, introduces it as the scores."""
    text = reply.replace("\u2019", "'")
    before = text[: text.find("[")].replace("```json", "").strip("`*\"' \n\t")[-_NEAR:]
    introduced = not before or _INTRODUCED.search(before) is not None
    return introduced and not _DENIED.search(before) and not _NO_SCORES.search(text)


def doubts(reply: str) -> list[str]:
    """`incomplete` for one number instead of two, `inexact` for more than two numbers or several `score` keys."""
    if score(reply) is None:
        return []
    count = len((parse(reply) or {"score": []})["score"])
    several = len(_KEY.findall(_between(reply) or "")) > 1  # JSON uses the last of equal keys
    if count > ASKED or several:
        return [readings.INEXACT]
    return [readings.INCOMPLETE] if count < ASKED else []


def _in_range(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= HIGHEST  # also excludes NaN


def overall(sc: float, pq: float) -> float:
    """The overall score O of one sample: sqrt(SC x PQ)."""
    return math.sqrt(sc * pq)


def summary(rows: Iterable[tuple[str, float, float]]) -> dict[str, float | None]:
    """SC, PQ and O per group, and the unweighted means over groups with samples, from rows (group, SC, PQ)."""
    rows = list(rows)
    found: dict[str, float | None] = {}
    for name, value in (("sc", lambda s, p: s), ("pq", lambda s, p: p), ("o", overall)):
        groups = by_category((group, value(sc, pq)) for group, sc, pq in rows)
        means = {group: sum(v) / len(v) for group, v in sorted(groups.items())}
        found |= {f"{name}.{group}": value for group, value in means.items()}
        found[name] = mean(list(means.values()))
    return found


def grade(
    items: Sequence[Prompt],
    verdicts: Mapping[str, tuple[str, str | None]],
    *,
    random_fallback: bool = False,
    seed: int = 42,
    partial: bool = False,
) -> Graded:
    """Grade replies by `<key>/SC` and `<key>/PQ`; `overall` is O over all edits, `intersection.*` that of the subset.

    `random_fallback` adds the official behaviour, a random integer for an unparsable reply, as separate metrics
    (`random_fallback.*`); it never replaces the score.
    """
    statuses: list[tuple[str, str]] = []
    graded: list[dict[str, Any]] = []
    guessed: list[tuple[str, float, float]] = []
    for item in items:
        found = {
            part: verdicts.get(f"{item.id}/{part}", ("missing", None)) for part in ("SC", "PQ")
        }
        read = {
            p: score(r) if s == "reply" and r is not None else None for p, (s, r) in found.items()
        }
        statuses.append((item.id, _status(found, read)))
        if read["SC"] is not None and read["PQ"] is not None:
            sc, pq = read["SC"], read["PQ"]
            graded.append({"id": item.id, "task": item.task, "sc": sc, "pq": pq,
                           "score": overall(sc, pq), **_subset(item)})  # fmt: skip
        if random_fallback and all(s == "reply" for s, _ in found.values()):
            filled = {p: _guess(v, seed, item.id, p) for p, v in read.items()}
            guessed.append((item.task, filled["SC"], filled["PQ"]))
    coverage = coverage_of(statuses)
    coverage.demand("gedit", partial)
    means = summary((row["task"], row["sc"], row["pq"]) for row in graded)
    subset = summary((r["task"], r["sc"], r["pq"]) for r in graded if r["intersection"])
    shown = {"overall": means["o"], **means, **{f"intersection.{k}": v for k, v in subset.items()}}
    if random_fallback:
        shown |= {f"random_fallback.{k}": v for k, v in summary(guessed).items() if "." not in k}
    limits = {
        name: interval((row["task"], row["id"], row[field]) for row in graded)
        for name, field in (("overall", "score"), ("o", "score"), ("sc", "sc"), ("pq", "pq"))
    }
    return Graded(shown, graded, coverage, {k: v for k, v in limits.items() if v},
                  {"random_fallback": random_fallback},
                  readings.of_verdicts(verdicts, doubts))  # fmt: skip


def _subset(item: Prompt) -> dict[str, bool]:
    return {"intersection": bool(item.facts.get("intersection"))}


def _status(found: Mapping[str, tuple[str, str | None]], read: Mapping[str, float | None]) -> str:
    """The status of an edit: that of its first part without a score."""
    for part, (status, _) in found.items():
        if read[part] is None:
            return "unparsable" if status == "reply" else status
    return "scored"


def _guess(value: float | None, seed: int, key: str, part: str) -> float:
    if value is not None:
        return value
    return float(numpy_generator("gedit random fallback", seed, key, part).integers(0, HIGHEST + 1))
