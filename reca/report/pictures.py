"""Grids of images with the examiner's verdicts: reconstructions of held-out scenes, and images of prompts by arm.

The first scenes and the first prompts of every task are shown, without selection.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from reca.evaluation.choose import arm_of
from reca.evaluation.tasks import laptop_prompts
from reca.evaluation.tasks.laptop_edit import edits
from reca.evaluation.tasks.laptop_prompts import (
    guidance_of,
    reconstruction_key,
    sample_key,
    test_seed,
)
from reca.inference.imageset import ImageSet, png
from reca.report.figures import NAMES
from reca.report.outcomes import TITLES
from reca.toyworld.scenes import draw_pixels
from reca.toyworld.text import dense_caption

SCENES, PROMPTS_PER_TASK = 6, 3
LARGEST = 256  # pixels of the longer side, larger than shown on the page
SHORT = NAMES | {"sft": "Plain"}  # names that fit below an image
DRAWN_BY, AGAIN_BY = ("base", "sft", "reca"), ("base", "reca")
EDITED_BY, EDITS_PER_KIND = ("base", "reca"), 3

Picture = dict[str, Any]  # name, uri, score (None: the target), alt
Row = dict[str, Any]  # title, and cards with a caption and images


def data_uri(image: Image.Image) -> str:
    """An image as a data URI, downscaled to at most `LARGEST` pixels."""
    image.thumbnail((LARGEST, LARGEST))
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def first_runs(model: Mapping[str, Any]) -> dict[str, str]:
    """The run with the smallest seed of every arm."""
    runs = sorted(model["samples"], key=lambda run: int(run.rsplit("-", 1)[1]), reverse=True)
    return {arm_of(run): run for run in runs}


def grids(model: Mapping[str, Any], benchmark: Mapping[str, Any]) -> dict[str, list[Row]]:
    """`again`: reconstructions of held-out scenes; `drawn`: images of prompts. Rows have a `title` and `cards`."""
    runs = first_runs(model)
    sets = {arm: ImageSet(model["samples"][runs[arm]]) for arm in DRAWN_BY if arm in runs}
    items = {arm: model["items"][runs[arm]] for arm in sets}
    return {
        "again": _drawn_again(sets, items, benchmark),
        "drawn": _drawn_from_prompts(sets, items, model["shown_at"]),
    }


def edited(found: Mapping[str, Any], benchmark: Mapping[str, Any]) -> list[Row]:
    """The first edits of every kind: the source, the instruction, and the results of the base model and RecA."""
    runs = first_runs(found)
    sets = {arm: ImageSet(found["samples"][runs[arm]]) for arm in EDITED_BY if arm in runs}
    rows: dict[str, list[Any]] = {}
    count = min(EDITS_PER_KIND, benchmark["prompts"])
    for asked in edits("test", count, test_seed(benchmark, "edits")):
        wording = asked.edit.instruction
        source = data_uri(Image.fromarray(draw_pixels(asked.edit.source)))
        shown = [{"name": "Source", "uri": source, "score": None, "alt": f"To change: {wording}"}]
        for arm, pictures in sets.items():
            level = found["chosen"][arm]["edit"]
            row = item_of(found["items"][runs[arm]], "edit", asked.id, level)
            if row:
                key = sample_key(level, asked.id)
                shown.append(_picture(arm, pictures, key, row["edit"], wording))
        rows.setdefault(asked.edit.kind, []).append({"caption": wording, "pictures": shown})
    return [{"title": kind.capitalize(), "cards": cards} for kind, cards in rows.items()]


def _drawn_again(
    sets: Mapping[str, ImageSet], items: Mapping[str, list[Any]], benchmark: Mapping[str, Any]
) -> list[Row]:
    cards = []
    count = min(SCENES, benchmark["reconstructions"])
    seed = test_seed(benchmark, "scenes")
    for index, scene in enumerate(laptop_prompts.held_out_scenes("test", count, seed)):
        name, wording = f"scene-{index:04d}", dense_caption(scene)
        target = data_uri(Image.fromarray(draw_pixels(scene)))
        shown = [{"name": "Target", "uri": target, "score": None, "alt": f"Target: {wording}"}]
        for arm in AGAIN_BY:
            row = item_of(items.get(arm, []), "reconstruction", name)
            if row:
                key = reconstruction_key(index)
                shown.append(_picture(arm, sets[arm], key, row["objects"], "reconstruction"))
        cards.append({"caption": "", "pictures": shown})
    return [{"title": "", "cards": cards}] if cards else []


def _drawn_from_prompts(
    sets: Mapping[str, ImageSet], items: Mapping[str, list[Any]], chosen: Mapping[str, Any]
) -> list[Row]:
    rows = []
    for task in (*laptop_prompts.DENSE_TASKS, *laptop_prompts.GENEVAL_TASKS):
        names = (f"{task}-{index:04d}" for index in range(PROMPTS_PER_TASK))
        cards = [_prompt_card(name, task, sets, items, chosen) for name in names]
        if kept := [card for card in cards if card["pictures"]]:
            rows.append({"title": TITLES[task].split(":")[0], "cards": kept})
    return rows


def _prompt_card(
    name: str,
    task: str,
    sets: Mapping[str, ImageSet],
    items: Mapping[str, list[Any]],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    card: dict[str, Any] = {"caption": "", "pictures": []}
    for arm in sets:
        level = guidance_of(task, chosen[arm])
        row = item_of(items[arm], "prompt", name, level)
        if row:
            key = sample_key(row["guidance"], name)
            card["caption"] = sets[arm].recipe(key)["prompt"]
            card["pictures"].append(_picture(arm, sets[arm], key, row["score"], card["caption"]))
    return card


def item_of(
    rows: Iterable[Mapping[str, Any]], kind: str, name: str, level: float | None = None
) -> Mapping[str, Any] | None:
    """The row of `items.jsonl` for a prompt, scene or edit; of several images, at `level` if given, the first one's."""
    for row in rows:
        right_level = level is None or row["guidance"] == level
        if row["kind"] == kind and row["id"] == name and right_level:
            return row
    return None


def _picture(arm: str, pictures: ImageSet, key: str, score: float, what: str) -> Picture:
    verdict = "accepted" if score == 1 else f"not accepted, {score:.0%} right"
    return {
        "name": SHORT[arm],
        "uri": data_uri(pictures.image(key)),
        "score": score,
        "alt": f"{NAMES[arm]}: {what}; {verdict}",
    }
