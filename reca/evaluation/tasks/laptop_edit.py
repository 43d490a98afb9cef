"""The laptop's edit benchmark: held-out images, instructions of five kinds, and the examiner's exact verdict.

An edit is right when the places that it changes show what was asked for (`followed`) and all other places show what
they did before, nothing more and nothing less (`kept`); the score is the share of edits with both. Edits of the two
splits never meet: `development` chooses the guidance, `test` is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reca.core.rng import numpy_generator
from reca.evaluation.tasks.laptop import SPLITS
from reca.toyworld import examiner
from reca.toyworld.edits import EDITS, Edit, draw_edit
from reca.toyworld.scenes import Scene, draw_pixels, draw_scene

Detections = Sequence[Mapping[str, Any]]
SCORES = ("edit", "edit_followed", "edit_kept")


@dataclass(frozen=True)
class Asked:
    """One edit of the benchmark under its name."""

    id: str
    edit: Edit


def edits(split: str, per_kind: int, seed: int) -> list[Asked]:
    """`per_kind` edits of each kind; edit i of a kind depends on (split, kind, i, seed) alone."""
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


# ---- scores --------------------------------------------------------------------------------------
def score_edit(edit: Edit, detections: Detections) -> dict[str, float]:
    """`edit`, `edit_followed` and `edit_kept`, each 0 or 1, of one image."""
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
    """Means of the three scores over all edits of (kind, scores), and of `edit` by kind as `edit_<kind>`."""
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
    """What is reached without editing: by the unchanged sources, and by true images of random other scenes."""
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
