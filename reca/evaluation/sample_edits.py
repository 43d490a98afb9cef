"""What one model makes of the laptop's edits, and its scores: the generate and score stages of `laptop_edit`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reca.core.artifacts import write_json, write_lines
from reca.inference.imageset import ImageSet, ImageSetWriter, png
from reca.inference.items import Prompt
from reca.toyworld import examiner
from reca.toyworld.edit_tasks import SCORES, Asked, chance, edits, means, score_edit
from reca.toyworld.prompts import read_samples, sample_key
from reca.toyworld.scenes import draw_pixels

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig, Sampler
    from reca.inference.generate import Origin
    from reca.models.contract import UnifiedModel

Guidance = Sequence[float] | Mapping[str, float]
BATCH = 100  # pictures of 16 x 16 pixels in one pass
_log = logging.getLogger(__name__)


def asked_for(
    section: BenchmarkConfig, split: str, guidance: Guidance
) -> tuple[list[float], list[Asked]]:
    """Guidance levels and edits: a sweep on development edits, one level (chosen for `edit`) on the test's."""
    given = [guidance["edit"]] if isinstance(guidance, Mapping) else guidance
    levels = [float(level) for level in given]
    if split == "test" and len(levels) != 1:
        raise ValueError(
            f"the test split is drawn at one guidance, not at {levels}; run `reca choose` first"
        )
    per_kind = section.development_prompts if split == "development" else section.prompts
    return levels, edits(split, per_kind, section.seed)


def make_edits(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    sampler: Sampler,
    origin: Origin,
    *,
    run: str,
    split: str,
    guidance: Guidance,
    work: Path,
    out: Path,
) -> dict[str, int]:
    """Edit every source at every level; `out` gets `images.tar` with recipes, and `samples.json`."""
    from reca.inference.generate import edit
    from reca.models.contract import Sampling

    levels, asked = asked_for(benchmark, split, guidance)
    prompts = [
        (Prompt(one.id, one.edit.instruction, one.edit.kind), source_png(one)) for one in asked
    ]
    with ImageSetWriter(out / "images.tar") as writer:
        for level in levels:
            edit(
                model,
                prompts,
                writer,
                origin,
                Sampling(level, sampler.steps, sampler.temperature, sampler.options),
                prefix=str(level),
                batch_size=BATCH,
                work=work / f"guidance-{level}",
                progress=_progress(f"{run} {split} edits, guidance {level:g}"),
            )
        drawn = len(writer.entries)
    described = {"run": run, "split": split, "seed": origin.seed, "guidance": levels}
    write_json(out / "samples.json", described)
    return {"pictures": drawn}


def source_png(asked: Asked) -> bytes:
    """The picture to change, as a file."""
    from PIL import Image

    return png(Image.fromarray(draw_pixels(asked.edit.source)))


def score_edits(section: BenchmarkConfig, samples: Path, out: Path) -> dict[str, Any]:
    """Score one run's edits: means by guidance in `scores.json`, every edit in `items.jsonl`."""
    described = read_samples(samples)
    levels, asked = asked_for(section, described["split"], described["guidance"])
    pictures = ImageSet(samples / "images.tar")
    items = [_item(one, level, pictures) for level in levels for one in asked]
    by_level: dict[str, list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for item in items:
        by_level[str(item["guidance"])].append((item["task"], {n: item[n] for n in SCORES}))
    result = {
        **{key: described[key] for key in ("run", "split", "seed")},
        "benchmark": section.kind,
        "guidance": {level: means(rows) for level, rows in by_level.items()},
        "counts": {"edit": len(asked)},
        "chance": chance(described["split"], section.prompts, section.seed),
    }
    write_json(out / "scores.json", result)
    write_lines(out / "items.jsonl", items)
    return result


def _item(asked: Asked, level: float, pictures: ImageSet) -> dict[str, Any]:
    pixels = np.asarray(pictures.image(sample_key(level, asked.id), 0).convert("RGB"))
    seen = examiner.detect(pixels)
    facts = {"kind": "edit", "id": asked.id, "task": asked.edit.kind, "guidance": level}
    return {**facts, **score_edit(asked.edit, seen), "objects": len(seen)}


def _progress(what: str) -> Callable[[int, int], None]:
    return lambda done, total: _log.info("%s: %d of %d pictures", what, done, total)
