"""A model's output for one shard of a benchmark: images, edits, reconstructions or answers.

`images.tar` holds pictures with their recipes, `answers.json` answers by question id, `samples.json` what
was asked. Shards take every n-th prompt; neither their number nor the batch changes a picture's noise (unless
one of the authors' seed schedules is asked for that does).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reca.core.artifacts import sha256_json, write_json
from reca.core.images import decode
from reca.data.prompts import bank
from reca.evaluation import registry
from reca.evaluation.benchmark_data import edit_sources, question_pictures, questions_of
from reca.inference.generate import Origin, answers, edit, generate, reconstruct
from reca.inference.imageset import ImageSetWriter
from reca.inference.items import Prompt, Question
from reca.inference.resume import ResumableRows
from reca.models.contract import ReadsSeveral, Sampling

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig, Sampler
    from reca.models.contract import UnifiedModel

Item = TypeVar("Item")
_log = logging.getLogger(__name__)
LONGEST = 128  # tokens of an answer


def shard_of(items: Sequence[Item], shard: tuple[int, int], together: int = 1) -> list[Item]:
    """Every n-th item from the i-th on; `together` neighbours (pairs of questions) stay in one shard."""
    index, count = shard
    return [item for place, item in enumerate(items) if place // together % count == index]


def limited(benchmark: BenchmarkConfig, items: Sequence[Item]) -> list[Item]:
    """All prompts, or the first `prompts` of them; a limited benchmark is no result."""
    return list(items[: benchmark.prompts] if benchmark.prompts else items)


def draw(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    sampler: Sampler,
    origin: Origin,
    data: Mapping[str, Path],
    *,
    run: str,
    work: Path,
    out: Path,
) -> dict[str, int]:
    """Make everything that this shard asks; gives counts for the record. What a killed run finished is in `work`."""
    needs = registry.kind(benchmark.kind).needs
    if len(sampler.guidance) != 1:
        raise ValueError(f"{benchmark.kind}: is drawn at one guidance, not at {sampler.guidance}")
    sampling = Sampling(sampler.guidance[0], sampler.steps, sampler.temperature, sampler.options)
    described: dict[str, Any] = {
        "run": run,
        "split": "test",
        "seed": origin.seed,
        "guidance": sampler.guidance[0],
        "shard": list(origin.shard),
        "seed_schedule": origin.schedule,
    }
    makers = {"draw": _pictures, "edit": _edits, "reconstruct": _again, "answer": _answers}
    if needs == "answer":
        described["pictures_shown"] = "all" if isinstance(model, ReadsSeveral) else "first"
    found = makers[needs](model, benchmark, origin, sampling, data, work, out)
    write_json(out / "samples.json", described)
    return found


def _pictures(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    origin: Origin,
    sampling: Sampling,
    data: Mapping[str, Path],
    work: Path,
    out: Path,
) -> dict[str, int]:
    prompts = registry.module(benchmark.kind).prompts(data)
    mine: list[Prompt] = shard_of(limited(benchmark, prompts), origin.shard)
    with ImageSetWriter(out / "images.tar") as writer:
        generate(
            model,
            mine,
            writer,
            origin,
            sampling,
            images_per_prompt=benchmark.images_per_prompt,
            batch_size=benchmark.batch_size,
            work=work,
            progress=_progress(benchmark.kind, origin),
        )
        return {"pictures": len(writer.entries)}


def _edits(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    origin: Origin,
    sampling: Sampling,
    data: Mapping[str, Path],
    work: Path,
    out: Path,
) -> dict[str, int]:
    prompts = registry.module(benchmark.kind).prompts(data)
    mine: list[Prompt] = shard_of(limited(benchmark, prompts), origin.shard)
    sources = edit_sources(benchmark.kind, mine, data)
    with ImageSetWriter(out / "images.tar") as writer:
        edit(
            model,
            [(prompt, sources[prompt.id]) for prompt in mine],
            writer,
            origin,
            sampling,
            batch_size=benchmark.batch_size,
            work=work,
            progress=_progress(benchmark.kind, origin),
        )
        return {"pictures": len(writer.entries)}


def _again(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    origin: Origin,
    sampling: Sampling,
    data: Mapping[str, Path],
    work: Path,
    out: Path,
) -> dict[str, int]:
    from reca.evaluation.tasks.reconstruction import pictures

    mine = shard_of(pictures(data, benchmark.reconstructions), origin.shard)
    with ImageSetWriter(out / "images.tar") as writer:
        for start in range(
            0, len(mine), benchmark.batch_size
        ):  # the originals are not all in memory
            part = mine[start : start + benchmark.batch_size]
            reconstruct(
                model,
                {prompt.id: decode(file, name=prompt.id) for prompt, file in part},
                writer,
                origin,
                sampling,
                prompt=bank()[0],
                batch_size=benchmark.batch_size,
                work=work,
            )
        return {"pictures": len(writer.entries)}


def _answers(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    origin: Origin,
    sampling: Sampling,
    data: Mapping[str, Path],
    work: Path,
    out: Path,
) -> dict[str, int]:
    """Greedy answers, kept one by one; batches are those of an undisturbed run (see `reca.inference.generate`)."""
    asked = questions_of(benchmark, data)
    if not isinstance(model, ReadsSeveral):
        asked = [replace(question, more_images=()) for question in asked]
    mine = shard_of(asked, origin.shard, together=2)  # MMVP's pairs, MME's two questions
    resume = ResumableRows(work / (origin.code[:16] or "any") / "answers.jsonl")
    keys = {question.id: _answer_key(benchmark, origin, question) for question in mine}
    for start in range(0, len(mine), benchmark.batch_size):
        part = mine[start : start + benchmark.batch_size]
        missing = [question.id for question in part if keys[question.id] not in resume.rows]
        if missing:
            said = _answered(model, benchmark, part, data)
            resume.add({keys[name]: [{"answer": said[name]}] for name in missing})
        _log.info("%s: %d of %d questions", benchmark.kind, start + len(part), len(mine))
    found = {name: resume.rows[key][0]["answer"] for name, key in keys.items()}
    write_json(out / "answers.json", found)
    return {"questions": len(found)}


def _answer_key(benchmark: BenchmarkConfig, origin: Origin, question: Question) -> str:
    shown = list(question.image_ids)
    return sha256_json([origin.model, benchmark.kind, question.id, question.text, shown, LONGEST])


def _answered(
    model: UnifiedModel,
    benchmark: BenchmarkConfig,
    part: Sequence[Question],
    data: Mapping[str, Path],
) -> dict[str, str]:
    images = question_pictures(benchmark.kind, part, data)
    shown = {name: decode(file, name=name) for name, file in images.items()}
    return answers(model, part, shown, batch_size=benchmark.batch_size, max_new_tokens=LONGEST)


def _progress(kind: str, origin: Origin) -> Callable[[int, int], None]:
    name = f"{kind} shard {origin.shard[0] + 1} of {origin.shard[1]}"
    return lambda done, total: _log.info("%s: %d of %d pictures", name, done, total)
