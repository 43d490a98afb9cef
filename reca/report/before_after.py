"""The README's picture: what was asked for, and the images before and after training, side by side in one PNG.

One band per model with three blocks: held-out scenes reconstructed, dense prompts, GenEval's tasks. The rows are the
first ones of the test split, in order; the runs are those with the smallest seed; guidance is what the report reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from reca.core import artifacts
from reca.evaluation.tasks.laptop_prompts import (
    GENEVAL_TASKS,
    STRICT,
    guidance_of,
    held_out_scenes,
    number_of,
    prompts,
    reconstruction_key,
    sample_key,
    scene_id,
    test_seed,
)
from reca.inference.imageset import ImageSet, png
from reca.inference.items import Prompt
from reca.report import collect
from reca.report.pictures import DRAWN_BY, SHORT, first_runs, item_of
from reca.toyworld.scenes import Scene, Thing, draw_pixels

TARGET = "target"
ROWS = 6  # scenes, and dense prompts; GenEval has six tasks
# Pixels of the file; pages show it at about half its size, so that it is sharp on screens of any density.
CELL, GAP, ROW, MARGIN, BETWEEN, FRAME = 80, 12, 94, 28, 48, 4
NAME, HEAD = 50, 76  # heights of a model's name and of a block's titles
TEXT, LINE, SMALL, TITLE = 22, 25, 20, 28  # font sizes, and the distance of lines
PAPER, INK, FAINT, EDGE, ACCEPTED = "#ffffff", "#1a1a1a", "#5a5a5a", "#c8ccd2", "#12a150"


@dataclass(frozen=True)
class Cell:
    """One image, and whether the examiner found in it everything that was asked for."""

    image: Image.Image
    accepted: bool


@dataclass(frozen=True)
class Row:
    """A scene or prompt: its words, an image per arm, and as `target` the one that was asked for where only one was."""

    words: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Block:
    """Rows of one kind, the outcome that they are judged by, and the guidance by arm (empty: none was used)."""

    outcome: str
    title: str
    words: int  # pixels of the column with words
    rows: Sequence[Row]
    guidance: Mapping[str, float]

    @property
    def columns(self) -> list[str]:
        """`target` and the arms, as far as there are images."""
        return [c for c in (TARGET, *DRAWN_BY) if any(c in row.cells for row in self.rows)]


# ---- what a run has ------------------------------------------------------------------------------
def picture(results: Path, models: Sequence[str]) -> tuple[bytes, dict[str, Any]]:
    """The PNG of a finished experiment, and what `docs/results/` says about it: hash, rows, runs and verdicts.

    ValueError if a model has no test scores of a benchmark of kind laptop, or its images are missing.
    """
    bands, about = {}, []
    for name in models:
        benchmark, described = _benchmark(results / name)
        at_base = described.get("base_guidance", False)
        test = collect.evaluated(results / name, benchmark, at_base=at_base)
        bands[name] = blocks(test, described)
        about.append({"name": name, **_about(bands[name], test, results)})
    data = png(drawn(bands))
    return data, {"sha256": artifacts.sha256_bytes(data), "models": about}


def _benchmark(model: Path) -> tuple[str, dict[str, Any]]:
    """The name and the configuration of the benchmark of kind laptop, as a model's scores record it."""
    for path in sorted(model.glob(f"*/*/test/scores/{artifacts.MANIFEST}")):
        described = artifacts.read_manifest(path.parent)["section"]
        if described.get("kind") == "laptop":
            return path.parents[2].name, described
    raise ValueError(
        f"{model}: no test scores of a benchmark of kind laptop; finish the experiment"
    )


def _about(found: Sequence[Block], test: Mapping[str, Any], results: Path) -> dict[str, Any]:
    runs = {arm: run for arm, run in first_runs(test).items() if arm in DRAWN_BY}
    images = {runs[arm]: test["samples"][runs[arm]] for arm in DRAWN_BY if arm in runs}
    return {
        "blocks": [
            {
                "outcome": block.outcome,
                "rows": len(block.rows),
                "guidance": dict(block.guidance),
                "accepted": {arm: _accepted(block, arm) for arm in block.columns if arm != TARGET},
            }
            for block in found
        ],
        "images": {
            run: {
                "file": path.relative_to(results).as_posix(),
                "sha256": artifacts.sha256_file(path),
            }
            for run, path in images.items()
        },
    }


def _accepted(block: Block, arm: str) -> int:
    return sum(row.cells[arm].accepted for row in block.rows if arm in row.cells)


def blocks(test: Mapping[str, Any], benchmark: Mapping[str, Any]) -> list[Block]:
    """The blocks of a model; `test` as of `collect.evaluated`, `benchmark` its configuration."""
    runs = first_runs(test)
    sets = {arm: ImageSet(test["samples"][runs[arm]]) for arm in DRAWN_BY if arm in runs}
    items = {arm: test["items"][runs[arm]] for arm in sets}
    asked = prompts("test", min(ROWS, benchmark["prompts"]), test_seed(benchmark, "prompts"))
    first = [prompt for prompt in asked if number_of(prompt.id) == 0]
    levels = {arm: test["shown_at"][arm] for arm in sets}
    geneval = STRICT if all(STRICT in level for level in levels.values()) else "geneval"
    shown = {
        "dense": ("Dense prompts", 340, [prompt for prompt in asked if prompt.task == "dense"]),
        geneval: ("GenEval", 230, [prompt for prompt in first if prompt.task in GENEVAL_TASKS]),
    }
    found = [Block("reconstruction", "Reconstructed", 0, _scenes(sets, items, benchmark), {})]
    for outcome, (title, words, chosen) in shown.items():
        at = {
            arm: level for arm in sets if (level := guidance_of(outcome, levels[arm])) is not None
        }
        rows = [_asked(prompt, outcome, sets, items, at) for prompt in chosen]
        found.append(Block(outcome, title, words, rows, at))
    return [block for block in found if block.rows]


Sets = Mapping[str, ImageSet]  # by arm
Items = Mapping[str, Sequence[Mapping[str, Any]]]  # rows of items.jsonl by arm


def _scenes(sets: Sets, items: Items, benchmark: Mapping[str, Any]) -> list[Row]:
    rows = []
    count = min(ROWS, benchmark["reconstructions"])
    scenes = held_out_scenes("test", count, test_seed(benchmark, "scenes"))
    for index, scene in enumerate(scenes):
        cells = {TARGET: Cell(rendered(scene), False)}
        for arm, images in sets.items():
            if scored := item_of(items[arm], "reconstruction", scene_id(index)):
                image = images.image(reconstruction_key(index))
                cells[arm] = Cell(image, scored["exact"] == 1)
        rows.append(Row("", cells))
    return rows


def _asked(
    prompt: Prompt, outcome: str, sets: Sets, items: Items, levels: Mapping[str, float]
) -> Row:
    scene = scene_of(prompt)
    cells = {TARGET: Cell(rendered(scene), False)} if scene else {}
    for arm, images in sets.items():
        scored = item_of(items[arm], "prompt", prompt.id, levels[arm])
        if scored is None:
            continue
        key = sample_key(levels[arm], prompt.id)
        if (said := images.recipe(key)["prompt"]) != prompt.text:  # the target would be another's
            raise ValueError(
                f"{images.path}: {key} is of the prompt {said!r}, which is now {prompt.text!r}; "
                "run the experiment again"
            )
        right = scored["strict" if outcome == STRICT else "score"] == 1
        cells[arm] = Cell(images.image(key), right)
    return Row(prompt.text, cells)


def scene_of(prompt: Prompt) -> Scene | None:
    """The scene of a dense prompt, objects in its order if it names no places; None for other prompts."""
    facts = prompt.facts.get("facts")
    if facts is None:
        return None
    things = (
        Thing(fact.get("place", index), fact["class"], fact["color"])
        for index, fact in enumerate(facts)
    )
    return Scene(tuple(things))


def rendered(scene: Scene) -> Image.Image:
    """The image of a scene."""
    return Image.fromarray(draw_pixels(scene))


# ---- on paper ------------------------------------------------------------------------------------
def drawn(bands: Mapping[str, Sequence[Block]]) -> Image.Image:
    """The picture, opaque so that it can be read on light and dark pages; equal blocks give equal pixels."""
    width = max(sum(map(_width, band)) + BETWEEN * (len(band) - 1) for band in bands.values())
    heights = [_height(band) for band in bands.values()]
    image = Image.new("RGB", (width + 2 * MARGIN, sum(heights) + MARGIN), PAPER)
    pen, top = ImageDraw.Draw(image), 0
    pen.rectangle((0, 0, image.width - 1, image.height - 1), outline=EDGE, width=2)
    for (name, band), height in zip(bands.items(), heights, strict=True):
        pen.text((MARGIN, top + MARGIN), name, INK, _font(TITLE))
        left = MARGIN
        for block in band:
            _draw(image, pen, block, left, top + MARGIN + NAME)
            left += _width(block) + BETWEEN
        top += height
    return image


def _width(block: Block) -> int:
    return block.words + len(block.columns) * (CELL + GAP) - GAP


def _height(band: Sequence[Block]) -> int:
    return MARGIN + NAME + HEAD + ROW * max(len(block.rows) for block in band)


def _draw(image: Image.Image, pen: ImageDraw.ImageDraw, block: Block, left: int, top: int) -> None:
    pen.text((left, top), block.title, INK, _font(TEXT))
    if block.guidance:
        levels = [f"{level:g}" for level in block.guidance.values()]
        levels = levels[:1] if len(set(levels)) == 1 else levels
        x = left + _font(TEXT).getlength(block.title) + 14
        pen.text((x, top + 2), f"guidance {', '.join(levels)}", FAINT, _font(SMALL))
    for place, column in enumerate(block.columns):
        x = left + block.words + place * (CELL + GAP)
        head = SHORT.get(column, column.capitalize())
        pen.text((x + CELL / 2, top + HEAD - 14), head, FAINT, _font(SMALL), anchor="ms")
        for index, row in enumerate(block.rows):
            if column in row.cells:
                _paste(image, pen, row.cells[column], x, top + HEAD + index * ROW)
    for index, row in enumerate(block.rows):
        _write(pen, row.words, left, top + HEAD + index * ROW, block.words - 16)


def _paste(image: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    image.paste(cell.image.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
    if cell.accepted:
        box = (x - FRAME, y - FRAME, x + CELL + FRAME - 1, y + CELL + FRAME - 1)
        pen.rectangle(box, outline=ACCEPTED, width=FRAME)


def _write(pen: ImageDraw.ImageDraw, words: str, left: int, top: int, width: int) -> None:
    lines = wrapped(words, width)
    first = top + (CELL - LINE * len(lines)) / 2
    for index, line in enumerate(lines):
        pen.text((left, first + index * LINE), line, INK, _font(TEXT))


def wrapped(words: str, width: int) -> list[str]:
    """Words in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(TEXT).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font of the machine decides what the file looks like."""
    return ImageFont.load_default(size)
