"""A model's output for a benchmark, or for one shard of it: images, edits, reconstructions and answers.

`images.tar` has the images with their sampling parameters, `answers.json` the answers by question id, `samples.json`
the run, split and guidance. A shard takes every n-th prompt. An image's noise depends neither on the number of shards
nor on the batch size, unless one of the authors' seed schedules that do is configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_json, write_json
from reca.core.images import decode
from reca.evaluation import registry
from reca.evaluation.assignment import Assignment, ImagePass
from reca.evaluation.benchmark_data import Guidance, assignment
from reca.evaluation.files import ANSWERS, IMAGES, SAMPLES
from reca.inference.generate import Origin, answers, edit, generate, reconstruct
from reca.inference.imageset import ImageSetWriter
from reca.inference.items import Question
from reca.inference.resume import ResumableRows, of_code
from reca.models.contract import ReadsSeveral, Sampling

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig, Sampler
    from reca.models.contract import UnifiedModel

_log = logging.getLogger(__name__)


def sample(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    sampler: Sampler,
    origin: Origin,
    data: Mapping[str, Path],
    *,
    run: str,
    split: str = "test",
    guidance: Guidance | None = None,
    work: Path,
    out: Path,
) -> dict[str, int]:
    """Generate all images and answers of a shard; returns counts for the manifest.

    `guidance`: the levels (default: the sampler's), or the level chosen for each outcome. Finished work of an
    interrupted run is kept in `work`.
    """
    guidance, kind = guidance or sampler.guidance, registry.kind(benchmark.kind)
    asked = assignment(benchmark, data, split, guidance, origin.shard)
    described: dict[str, Any] = {
        "run": run,
        "split": split,
        "seed": origin.seed,
        "guidance": sorted({float(one) for one in _levels(guidance)}),
        "chosen": dict(guidance) if isinstance(guidance, Mapping) else None,
        "shard": list(origin.shard),
        "seed_schedule": origin.schedule,
    }
    found = {}
    if kind.images:
        found["pictures"] = _images(model, asked, sampler, origin, f"{run} {split}", work, out)
    if "answer" in kind.needs:
        described["pictures_shown"] = "all" if isinstance(model, ReadsSeveral) else "first"
        found["questions"] = _answers(model, asked, origin, work, out)
    write_json(out / SAMPLES, described)
    return found


def _levels(guidance: Guidance) -> Sequence[float]:
    return list(guidance.values()) if isinstance(guidance, Mapping) else guidance


# ---- images ----------------------------------------------------------------------------------------
def _images(
    model: UnifiedModel,
    asked: Assignment,
    sampler: Sampler,
    origin: Origin,
    name: str,
    work: Path,
    out: Path,
) -> int:
    with ImageSetWriter(out / IMAGES) as writer:
        for one in asked.passes:
            sampling = Sampling(one.guidance, sampler.steps, sampler.temperature, sampler.options)
            make = {"draw": _drawn, "edit": _edited, "reconstruct": _reconstructed}[one.need]
            title = f"{name} {origin.benchmark} {one.need}, guidance {one.guidance:g}"
            shared: dict[str, Any] = {
                "prefix": one.prefix,
                "batch_size": asked.batch_size,
                "work": work,
                "progress": _progress(title, origin.shard),
            }
            make(model, one, writer, origin, sampling, shared)
        return len(writer.entries)


def _drawn(
    model: UnifiedModel,
    one: ImagePass,
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    shared: dict[str, Any],
) -> None:
    count = one.images_per_prompt
    generate(model, one.prompts, writer, origin, sampling, images_per_prompt=count, **shared)


def _edited(
    model: UnifiedModel,
    one: ImagePass,
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    shared: dict[str, Any],
) -> None:
    edits = [(prompt, one.sources[prompt.id]) for prompt in one.prompts]
    edit(model, edits, writer, origin, sampling, **shared)


def _reconstructed(
    model: UnifiedModel,
    one: ImagePass,
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    shared: dict[str, Any],
) -> None:
    originals = [(prompt, one.sources[prompt.id]) for prompt in one.prompts]
    reconstruct(model, originals, writer, origin, sampling, **shared)


def _progress(title: str, shard: tuple[int, int]) -> Callable[[int, int], None]:
    name = f"{title}, shard {shard[0] + 1} of {shard[1]}" if shard[1] > 1 else title
    return lambda done, total: _log.info("%s: %d of %d images", name, done, total)


# ---- answers ---------------------------------------------------------------------------------------
def _answers(model: UnifiedModel, asked: Assignment, origin: Origin, work: Path, out: Path) -> int:
    """Write greedy answers, saved one by one; a resumed run uses the batches of an uninterrupted one.

    The batches matter because the number of rows affects rounding (see `reca.inference.generate`).
    """
    mine = list(asked.questions)
    if not isinstance(model, ReadsSeveral):
        mine = [replace(question, more_images=()) for question in mine]
    resume = ResumableRows(of_code(work, origin.code) / "answers.jsonl")
    asked = replace(asked, max_new_tokens=asked.max_new_tokens or model.longest_answer)
    keys = {question.id: _answer_key(asked, origin, question) for question in mine}
    for start in range(0, len(mine), asked.batch_size):
        part = mine[start : start + asked.batch_size]
        missing = [question.id for question in part if keys[question.id] not in resume.rows]
        if missing:
            said = _answered(model, asked, part)
            resume.add({keys[name]: [{"answer": said[name]}] for name in missing})
        _log.info("%s: %d of %d questions", origin.benchmark, start + len(part), len(mine))
    found = {name: resume.rows[key][0]["answer"] for name, key in keys.items()}
    write_json(out / ANSWERS, found)
    return len(found)


def _answer_key(asked: Assignment, origin: Origin, question: Question) -> str:
    shown = list(question.image_ids)
    return sha256_json(
        [origin.model, origin.benchmark, question.id, question.text, shown, asked.max_new_tokens]
    )


def _answered(model: UnifiedModel, asked: Assignment, part: Sequence[Question]) -> dict[str, str]:
    wanted = {name for question in part for name in question.image_ids}
    files = asked.read(part)
    shown = {name: decode(file, name=name) for name, file in files.items() if name in wanted}
    assert asked.max_new_tokens is not None
    size, longest = asked.batch_size, asked.max_new_tokens
    return answers(model, part, shown, batch_size=size, max_new_tokens=longest)
