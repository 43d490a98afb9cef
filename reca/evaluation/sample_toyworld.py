"""A model's output for a benchmark: images, reconstructions and answers, in one folder.

`images.tar` holds the pictures with their recipes, `answers.json` the answers by question id, and
`samples.json` what was asked: run, split, seed and guidance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from reca.core.artifacts import write_json
from reca.data.prompts import bank
from reca.evaluation.tasks.laptop_prompts import Plan, plan
from reca.inference.generate import Origin, answers, generate, reconstruct
from reca.inference.imageset import ImageSetWriter
from reca.models.contract import Sampling
from reca.toyworld.scenes import draw_pixels

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig, Sampler
    from reca.models.contract import UnifiedModel

_log = logging.getLogger(__name__)
Guidance = Sequence[float] | Mapping[str, float]
LONGEST = 48  # tokens of an answer; the description of four objects has 36
BATCH = 128  # pictures of 16 x 16 pixels in one pass


def make_samples(
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
    """Draw and answer everything that the benchmark's plan asks; gives counts for the record.

    `guidance` is a list of levels, or the level chosen for each outcome. Finished pictures stay in
    `work`, so a killed run resumes. ValueError for a benchmark that has no plan of its own yet.
    """
    if benchmark.kind == "laptop_edit":
        from reca.evaluation.sample_edits import make_edits

        return make_edits(
            model, benchmark, sampler, origin, run=run, split=split, guidance=guidance, work=work, out=out
        )  # fmt: skip
    if benchmark.kind != "laptop":
        raise ValueError(
            f"benchmark kind {benchmark.kind!r} is configuration only; laptop and laptop_edit can run"
        )
    asked = plan(benchmark, split, guidance)
    scenes = _scenes(asked)
    with ImageSetWriter(out / "images.tar") as writer:
        for level, prompts in asked.prompts.items():
            generate(
                model,
                prompts,
                writer,
                origin,
                _sampling(sampler, level),
                prefix=str(level),
                images_per_prompt=asked.images_per_prompt,
                batch_size=BATCH,
                work=work / f"guidance-{level}",
                progress=_progress(f"{run} {split} guidance {level:g}"),
            )
        # The embeddings are the whole condition, so nothing is pushed away from: guidance 0.
        reconstruct(
            model,
            dict(list(scenes.items())[: asked.reconstructions]),
            writer,
            origin,
            _sampling(sampler, 0.0),
            prompt=bank("laptop")[0],
            prefix="reconstruct",
            batch_size=BATCH,
            work=work / "reconstruct",
            progress=_progress(f"{run} {split} reconstructions"),
        )
        drawn = len(writer.entries)
    write_json(
        out / "answers.json",
        answers(model, asked.questions, scenes, batch_size=BATCH, max_new_tokens=LONGEST),
    )
    described = {"run": run, "split": split, "seed": origin.seed, "guidance": _plain(guidance)}
    write_json(out / "samples.json", described)
    return {"pictures": drawn, "questions": len(asked.questions)}


def _scenes(asked: Plan) -> dict[str, Image.Image]:
    """The held-out scenes as pictures, by the id that questions and scores know them by."""
    return {
        f"scene-{index:04d}": Image.fromarray(draw_pixels(scene))
        for index, scene in enumerate(asked.scenes)
    }


def _sampling(sampler: Sampler, guidance: float) -> Sampling:
    return Sampling(guidance, sampler.steps, sampler.temperature, sampler.options)


def _plain(guidance: Guidance) -> Any:
    return dict(guidance) if isinstance(guidance, Mapping) else list(guidance)


def _progress(what: str) -> Callable[[int, int], None]:
    return lambda done, total: _log.info("%s: %d of %d pictures", what, done, total)
