"""GenEval: 553 prompts of six tasks, scored from detections (reference/benchmarks.md 2).

The rules are in `geneval_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.documents import lines, read_json
from reca.core.structure import Share
from reca.evaluation.graded import Graded, coverage_of, interval
from reca.evaluation.reading import one_file
from reca.evaluation.tasks import geneval_rules
from reca.inference.items import Prompt

VERSION = "djghosh13 af4902f"
IMAGES_PER_PROMPT = 12
ROLES = ("prompts",)
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
METADATA, NAMES = "evaluation_metadata.jsonl", "object_names.txt"


# ---- data ------------------------------------------------------------------------------------------
def prompts(data: Mapping[str, Path]) -> list[Prompt]:
    """The prompts in file order; the id is the five-digit name of the official folder, the facts the metadata line."""
    path = one_file(data["prompts"], METADATA, "source geneval")
    return [
        Prompt(f"{number:05d}", facts["prompt"], facts["tag"], facts)
        for number, facts in enumerate(lines(path, prompt=str, tag=str, include=list))
    ]


def object_names(data: Mapping[str, Path]) -> list[str]:
    """GenEval's names of the 80 COCO classes, in order of the class index."""
    names = one_file(data["prompts"], NAMES, "source geneval").read_text().split("\n")
    return [name.strip() for name in names if name.strip()]


def official_name(prompt: Prompt, sample: int) -> str:
    """The file name of an image in the layout of the official scorer."""
    return f"{prompt.id}/samples/{sample:05d}.png"


def check_folder(folder: Path, items: Sequence[Prompt]) -> None:
    """ValueError if `NNNNN/metadata.jsonl` in a folder differs from prompt NNNNN.

    The official scorer grades by that file; without this check a folder for another list of prompts would be scored.
    """
    ours = {int(item.id): item for item in items}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        if not path.parent.name.isdecimal() or int(path.parent.name) not in ours:
            continue
        try:
            recorded = read_json(path)
        except ValueError as error:
            raise ValueError(
                f"{path}: not a line of JSON ({error}); correct or remove it"
            ) from error
        facts = ours[int(path.parent.name)].facts
        for name in ("tag", "include", "exclude"):
            if (
                isinstance(recorded, dict)
                and name in recorded
                and recorded[name] != facts.get(name)
            ):
                raise ValueError(
                    f"{path}: {name} is {recorded[name]}, but {facts.get(name)} in the prompt of this number; give a "
                    "folder of images for this list of prompts"
                )


# ---- scores: pure ----------------------------------------------------------------------------------
def grade(
    items: Sequence[Prompt],
    evidence: Iterable[Mapping[str, Any]],
    *,
    samples: int,
    max_overlap: Share = 1.0,
    partial: bool = False,
) -> Graded:
    """Grade detections `{"id", "sample", "detections"}` of `samples` images per prompt.

    `overall` is the unweighted mean of the six tasks; `images` and `prompts` are the other two official
    numbers. `max_overlap` 1 means no suppression, as in the official code.
    """
    seen = {(row["id"], int(row["sample"])): row["detections"] for row in evidence}
    wanted = [(item, k) for item in items for k in range(samples)]
    coverage = coverage_of(
        (official_name(item, k), "scored" if (item.id, k) in seen else "missing")
        for item, k in wanted
    )
    coverage.demand("geneval", partial)
    graded: list[dict[str, Any]] = []
    for item, k in wanted:
        if (item.id, k) in seen:
            right, reason, _ = geneval_rules.judge(item.facts, seen[item.id, k], max_overlap)
            graded.append({"id": item.id, "sample": k, "task": item.task,
                           "score": float(right), "reason": reason})  # fmt: skip
    found = geneval_rules.summarise((r["task"], r["id"], bool(r["score"])) for r in graded)
    shown: dict[str, float | None] = {n: found[n] for n in ("overall", "images", "prompts")}
    shown |= {f"tasks.{name}": value for name, value in found["tasks"].items()}
    limits = interval((row["task"], row["id"], row["score"]) for row in graded)
    return Graded(shown, graded, coverage, {"overall": limits} if limits else {},
                  {"max_overlap": max_overlap})  # fmt: skip
