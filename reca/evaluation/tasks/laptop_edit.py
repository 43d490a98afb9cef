"""The laptop's edit benchmark: edits of held-out images by instructions of five kinds, verified by the exact examiner.

An edit is correct if the places it concerns show exactly what was requested (`followed`) and all other places are
unchanged (`kept`); the score is the share of edits with both. The two splits have separate edits: guidance is chosen on
`development`, and `test` is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reca.core.rng import numpy_generator
from reca.evaluation.assignment import Assignment, ImagePass
from reca.evaluation.graded import Graded, coverage_of, single_level
from reca.evaluation.tasks.laptop_prompts import AT_BASE, SPLITS, sample_key, scene_png, test_seed
from reca.inference.items import Prompt
from reca.toyworld import examiner
from reca.toyworld.edits import EDITS, Edit, draw_edit
from reca.toyworld.scenes import Scene, draw_pixels, draw_scene

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

VERSION = "reca 1"
BATCH = 100  # images of 16 x 16 pixels per model call
Guidance = Sequence[float] | Mapping[str, float]
Detections = Sequence[Mapping[str, Any]]
SCORES = ("edit", "edit_followed", "edit_kept")


@dataclass(frozen=True)
class Asked:
    """One edit of the benchmark and its id."""

    id: str
    edit: Edit


def edits(split: str, per_kind: int, seed: int) -> list[Asked]:
    """`per_kind` edits of each kind; edit i of a kind depends only on (split, kind, i, seed)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; choose one of: {', '.join(SPLITS)}")
    return [
        Asked(
            f"{kind}-{index:04d}",
            draw_edit(kind, numpy_generator("laptop_edit", split, kind, index, seed)),
        )
        for kind in EDITS
        for index in range(per_kind)
    ]


def asked_for(
    section: BenchmarkConfig, split: str, guidance: Guidance
) -> tuple[list[float], list[Asked]]:
    """Guidance levels and edits: all levels for the development split, those chosen for `edit` for the test split: of
    the arm, and of the base if requested.

    ValueError for several levels of the test split without a choice.
    """
    chosen = isinstance(guidance, Mapping)
    if isinstance(guidance, Mapping):
        names = ("edit", f"edit{AT_BASE}")
        guidance = list(dict.fromkeys(guidance[name] for name in names if name in guidance))
    levels = [float(level) for level in guidance]
    if split == "test" and not chosen and len(levels) != 1:
        raise ValueError(
            f"the test split is sampled at one guidance level, not at {levels}; run `reca choose` first"
        )
    per_kind = section.development_prompts if split == "development" else section.prompts
    seed = test_seed(vars(section), "edits") if split == "test" else section.seed
    return levels, edits(split, per_kind, seed)


def assignment(benchmark: BenchmarkConfig, split: str, guidance: Guidance) -> Assignment:
    """Every edit of a split at every guidance level."""
    levels, asked = asked_for(benchmark, split, guidance)
    prompts = [Prompt(one.id, one.edit.instruction, one.edit.kind) for one in asked]
    sources = {one.id: scene_png(one.edit.source) for one in asked}
    passes = [ImagePass("edit", prompts, level, str(level), sources=sources) for level in levels]
    return Assignment(tuple(passes), batch_size=BATCH)


# ---- scores: pure ----------------------------------------------------------------------------------
def grade(
    benchmark: BenchmarkConfig,
    sampled: Mapping[str, Any],
    evidence: Iterable[Mapping[str, Any]],
    answers: Mapping[str, str],
    *,
    partial: bool = False,
) -> Graded:
    """Grade the detections of the edits of one split, like `laptop.grade`; `answers` is unused."""
    guidance = sampled["chosen"] or sampled["guidance"]
    levels, asked = asked_for(benchmark, sampled["split"], guidance)
    seen = {(row["id"], int(row["sample"])): row["detections"] for row in evidence}
    wanted = [(level, one, sample_key(level, one.id)) for level in levels for one in asked]
    coverage = coverage_of(
        (key, "scored" if (key, 0) in seen else "missing") for _, _, key in wanted
    )
    coverage.demand(benchmark.kind, partial)
    items = [_item(one, level, seen[key, 0]) for level, one, key in wanted if (key, 0) in seen]
    by_level: dict[str, list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for item in items:
        by_level[str(item["guidance"])].append((item["task"], {n: item[n] for n in SCORES}))
    found = {level: means(rows) for level, rows in by_level.items()}
    own = found.get(str(float(guidance["edit"])), {}) if isinstance(guidance, Mapping) else {}
    return Graded({**single_level(found), **own}, items, coverage, by_guidance=found)


def _item(asked: Asked, level: float, seen: Detections) -> dict[str, Any]:
    facts = {"kind": "edit", "id": asked.id, "task": asked.edit.kind, "guidance": level}
    return {**facts, **score_edit(asked.edit, seen), "objects": len(seen)}


def score_edit(edit: Edit, detections: Detections) -> dict[str, float]:
    """`edit`, `edit_followed` and `edit_kept` of one image, each 0 or 1."""
    seen = [(d["place"], d["class"], d["color"]) for d in detections]
    followed, kept = (
        float(
            sorted(one for one in seen if (one[0] in edit.places) == inside)
            == sorted(one for one in _facts(edit.target) if (one[0] in edit.places) == inside)
        )
        for inside in (True, False)
    )
    return {"edit": followed * kept, "edit_followed": followed, "edit_kept": kept}


def _facts(scene: Scene) -> list[tuple[int, str, str]]:
    return [(thing.place, thing.shape, thing.colour) for thing in scene.things]


def means(rows: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Means of the three scores over rows (kind, scores), and of `edit` by kind as `edit_<kind>`."""
    rows = list(rows)
    found = {name: float(np.mean([row[name] for _, row in rows])) for name in SCORES}
    for kind in EDITS:
        values = [row["edit"] for one, row in rows if one == kind]
        if values:
            found[f"edit_{kind}"] = float(np.mean(values))
    return found


def chance(
    split: str, per_kind: int, seed: int, pictures: int = 400
) -> dict[str, dict[str, float]]:
    """Scores without editing: `unchanged` of the source images, `random` of rendered images of random other scenes."""
    asked = edits(split, per_kind, seed)
    generator = numpy_generator("laptop_edit", "chance", seed)
    others = [examiner.detect(draw_pixels(draw_scene(generator))) for _ in range(pictures)]
    picks = generator.integers(pictures, size=(len(asked), 8))
    unchanged = [
        (one.edit.kind, score_edit(one.edit, examiner.detect(draw_pixels(one.edit.source))))
        for one in asked
    ]
    random = [
        (one.edit.kind, score_edit(one.edit, others[i]))
        for one, row in zip(asked, picks, strict=True)
        for i in row
    ]
    return {"unchanged": means(unchanged), "random": means(random)}
