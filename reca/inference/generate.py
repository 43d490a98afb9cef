"""A model's output for benchmarks: images for prompts, reconstructions, edits, and answers to questions.

An image's noise is a function of (benchmark, prompt id, sample index, seed), independent of the batch and the
number of devices. Finished images are saved one by one, so a killed run resumes. The seed schedules of the
authors' scripts, some of which do depend on the number of devices, are options.

A batch can still affect the last bit of the arithmetic: libraries sum in a different order for a different number
of rows (tiny Harmon and BAGEL on a CPU: one grey level in a few pixels). Therefore batches are formed from all
requests, whatever is finished already, and a resumed run gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from reca.core import artifacts
from reca.core.finite import named
from reca.core.images import decode, original_of
from reca.core.rng import generator
from reca.inference.imageset import Entry, ImageSetWriter, png
from reca.inference.resume import ResumableImages, of_code
from reca.models.common.batching import moved
from reca.models.contract import editor, reader_of_several

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.config.schema import SeedSchedule
    from reca.inference.items import Prompt, Question
    from reca.models.contract import Features, Sampling, UnifiedModel

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
_log = logging.getLogger(__name__)


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Origin:
    """What all images of one run have in common: the model (any hash of it), benchmark, seed.

    `code` is a fingerprint of the sampling modules; unfinished work of other code is not used.
    `schedule` is the source of noise (`_noise`), `shard` the part (i of n) of the prompts.
    """

    model: str
    benchmark: str
    seed: int
    code: str = ""
    schedule: SeedSchedule = "per_image"
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class _Job:
    """One image to generate; with `original`, from the embeddings of that image."""

    key: str
    index: int
    text: str
    noise: tuple[str | int, ...]
    recipe: dict[str, Any]
    original: bytes | None = None  # file of the image to reconstruct; decoded with its batch
    source: bytes | None = None  # file of the image to edit

    @property
    def entry(self) -> Entry:
        """The entry of the image in its set."""
        return Entry(self.key, self.index)

    @property
    def in_turn(self) -> bool:
        """Whether its noise continues the stream of the previous image."""
        return self.noise[2:3] == ("in turn",)


# ---- images, reconstructions, edits, answers------------------------------------------------------
def generate(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    *,
    prefix: str = "",
    images_per_prompt: int = 1,
    batch_size: int = 16,
    work: Path | None = None,
    progress: Progress = _silent,
) -> int:
    """Generate every prompt and add the images to `writer` in prompt order; returns how many are new.

    Prompts of similar length share a batch. `prefix` (such as a guidance level) is prepended to the
    keys but does not affect the noise, so levels share the same noise. `work` stores finished images.
    """
    jobs = [
        _job(prompt.id, index, prompt.text, prefix, origin, sampling)
        for prompt in prompts
        for index in range(images_per_prompt)
    ]
    return _draw_all(model, jobs, writer, origin, sampling, batch_size, work, progress)


def reconstruct(
    model: UnifiedModel,
    originals: Sequence[tuple[Prompt, bytes]],
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    *,
    prefix: str = "",
    batch_size: int = 16,
    work: Path | None = None,
    progress: Progress = _silent,
) -> int:
    """Reconstruct image files from their own understanding embeddings; see `generate`."""
    jobs = [
        _job(prompt.id, 0, prompt.text, prefix, origin, sampling, original=original)
        for prompt, original in originals
    ]
    return _draw_all(model, jobs, writer, origin, sampling, batch_size, work, progress)


def edit(
    model: UnifiedModel,
    edits: Sequence[tuple[Prompt, bytes]],
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    *,
    prefix: str = "",
    batch_size: int = 1,
    work: Path | None = None,
    progress: Progress = _silent,
) -> int:
    """Edit image files by their prompts; see `generate`. ValueError for a family that cannot edit."""
    jobs = [
        _job(prompt.id, 0, prompt.text, prefix, origin, sampling, source=source)
        for prompt, source in edits
    ]
    return _draw_all(model, jobs, writer, origin, sampling, batch_size, work, progress)


def answers(
    model: UnifiedModel,
    questions: Sequence[Question],
    images: Mapping[str, Image],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    progress: Progress = _silent,
) -> dict[str, str]:
    """Greedy answers by question id, in the questions' order; `images` are the images by image id.

    Questions in a batch have equally many images. ValueError if the model cannot read that many.
    """
    missing = [question.id for question in questions if not set(question.image_ids) <= set(images)]
    if missing:
        raise ValueError(f"{len(missing)} questions refer to missing images: {missing[0]}")
    found: dict[str, str] = {}
    with inference(model):
        for batch in _question_batches(questions, batch_size):
            columns = zip(*(question.image_ids for question in batch), strict=True)
            read = [_read(model, names, images) for names in columns]
            texts = [question.text for question in batch]
            with named([question.id for question in batch]):
                if len(read) == 1:
                    given = model.answer(texts, read[0], max_new_tokens)
                else:
                    given = reader_of_several(model).answer_about(texts, read, max_new_tokens)
            found |= {question.id: text for question, text in zip(batch, given, strict=True)}
            progress(len(found), len(questions))
    return {question.id: found[question.id] for question in questions}


def _question_batches(
    questions: Sequence[Question], batch_size: int
) -> Iterator[Sequence[Question]]:
    """Batches of questions with equally many images; questions about the same images are adjacent."""
    by_count: dict[int, list[Question]] = {}
    for question in sorted(questions, key=lambda question: (question.image_ids, question.id)):
        by_count.setdefault(len(question.image_ids), []).append(question)
    for _, group in sorted(by_count.items()):
        yield from _chunks(group, batch_size)


def draw(
    model: UnifiedModel,
    texts: Sequence[str],
    features: Features | None,
    sampling: Sampling,
    noise: Sequence[torch.Generator],
) -> list[Image]:
    """One image per text, conditioned on text alone or on text and understanding features (RecA).

    NonFinite (a ValueError) names texts whose logits, latents or pixels are not finite.
    """
    unconditional = model.unconditional(len(texts)) if sampling.guidance > 0 else None
    with named(texts):
        return model.generate(model.condition(texts, features), unconditional, sampling, noise)


@contextmanager
def inference(model: UnifiedModel) -> Iterator[None]:
    """Context without gradients and dropout; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# ---- batched generation --------------------------------------------------------------------------
def _job(
    name: str,
    index: int,
    text: str,
    prefix: str,
    origin: Origin,
    sampling: Sampling,
    original: bytes | None = None,
    source: bytes | None = None,
) -> _Job:
    noise = _noise(name, index, origin)
    recipe: dict[str, Any] = {
        "prompt": text,
        "prompt_id": name,
        "sample": index,
        "benchmark": origin.benchmark,
        "seed": origin.seed,
        "generator": list(noise),
        "model": origin.model,
        "guidance": sampling.guidance,
        "steps": sampling.steps,
        "temperature": sampling.temperature,
        "options": dict(sampling.options or {}),
    }
    if original is not None:
        pixels = original_of(original, name=name).tobytes()
        recipe["image_sha256"] = artifacts.sha256_bytes(pixels)
    if source is not None:
        recipe["source_sha256"] = artifacts.sha256_bytes(source)
    return _Job(
        f"{prefix}/{name}" if prefix else name, index, text, noise, recipe, original, source
    )


def _noise(name: str, index: int, origin: Origin) -> tuple[str | int, ...]:
    """The noise of an image.

    `per_image` is this package's default. The authors' scripts (reference/benchmarks.md 1): `sample_index`
    seeds image i of every prompt with seed + i; `prompt_reset` uses one generator for all images of
    a prompt in sequence; `process` one for all images of a process, so it depends on the shards.
    """
    if origin.schedule == "per_image":
        return (origin.benchmark, name, index, origin.seed)
    if origin.schedule == "sample_index":
        return ("torch", origin.seed + index)
    if origin.schedule == "prompt_reset":
        return ("torch", origin.seed, "in turn", name)
    return ("torch", origin.seed, "in turn", *origin.shard)


def _generator(job: _Job) -> torch.Generator:
    if job.noise[0] == "torch":
        return torch.Generator().manual_seed(int(job.noise[1]))
    return generator(*job.noise)


def _draw_all(
    model: UnifiedModel,
    jobs: Sequence[_Job],
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    batch_size: int,
    work: Path | None,
    progress: Progress,
) -> int:
    if len({job.entry for job in jobs}) < len(jobs):
        raise ValueError(
            f"{writer.path}: an image would be written twice; prompt ids must be unique"
        )
    with _resumable(work, origin.code) as resume:
        remaining = {job.entry for job in jobs if not resume.has(job.entry, job.recipe)}
        if finished := len(jobs) - len(remaining):
            _log.info("%d of %d images were generated in an earlier run", finished, len(jobs))
        with inference(model):
            for batch in _batches(jobs, batch_size):
                missing = remaining.intersection(job.entry for job in batch)
                if missing:
                    make = _in_turn if batch[0].in_turn else _together
                    make(model, batch, sampling, resume, missing)
                    finished += len(missing)
                    progress(finished, len(jobs))
        for job in jobs:
            writer.add(*job.entry, resume.png(job.entry), job.recipe)
    return len(remaining)


def _batches(jobs: Sequence[_Job], batch_size: int) -> Iterator[Sequence[_Job]]:
    """Batches of requests: images with similar prompts, or all images that share one generator."""
    if not any(job.in_turn for job in jobs):
        # stable: equal lengths stay in prompt order
        yield from _chunks(sorted(jobs, key=lambda job: len(job.text)), batch_size)
        return
    for noise in dict.fromkeys(job.noise for job in jobs):
        yield [job for job in jobs if job.noise == noise]


@contextmanager
def _resumable(work: Path | None, code: str) -> Iterator[ResumableImages]:
    """The folder of finished images: inside `work`, one folder per version of the code."""
    if work is not None:
        yield ResumableImages(of_code(work, code))
        return
    with TemporaryDirectory() as temporary:
        yield ResumableImages(Path(temporary))


def _together(
    model: UnifiedModel,
    batch: Sequence[_Job],
    sampling: Sampling,
    resume: ResumableImages,
    missing: Set[Entry],
) -> None:
    """Generate a batch in one pass and save its missing images one by one.

    If a run was killed between two of them, the pass is repeated with all its rows; existing images stay.
    """
    images = _rows(model, batch, sampling, [_generator(job) for job in batch])
    other = 0
    for job, image in zip(batch, images, strict=True):
        if job.entry in missing:
            resume.put(job.entry, image, job.recipe)
        else:
            other += resume.png(job.entry) != png(image)
    if other:
        _log.warning(
            "%d finished images would differ now (another machine, library or batch size); they are kept",
            other,
        )


def _in_turn(
    model: UnifiedModel,
    batch: Sequence[_Job],
    sampling: Sampling,
    resume: ResumableImages,
    missing: Set[Entry],
) -> None:
    """Generate images in sequence from one generator, whose state is saved with each of them."""
    noise = _generator(batch[0])
    for job in batch:
        if job.entry in missing:
            (image,) = _rows(model, [job], sampling, [noise])
            resume.put(job.entry, image, job.recipe, noise.get_state().numpy().tobytes())
        else:
            noise.set_state(torch.frombuffer(bytearray(resume.state(job.entry)), dtype=torch.uint8))


def _rows(
    model: UnifiedModel, batch: Sequence[_Job], sampling: Sampling, noise: Sequence[torch.Generator]
) -> list[Image]:
    """One pass of the model: from texts, from embeddings of images, or edits of images."""
    texts = [job.text for job in batch]
    sources = [decode(job.source, name=job.key) for job in batch if job.source is not None]
    if sources:
        with named(texts):
            return editor(model).edit(sources, texts, sampling, noise)
    pictures = [original_of(job.original, name=job.key) for job in batch if job.original]
    features = model.encode(pictures, "draw") if pictures else None
    return draw(model, texts, features, sampling, noise)


def _read(model: UnifiedModel, names: Sequence[str], images: Mapping[str, Image]) -> Features:
    """Features of the named images, one row per name; each image is encoded once."""
    distinct = list(dict.fromkeys(names))
    features = model.encode([images[name] for name in distinct], "read")
    rows = torch.tensor([distinct.index(name) for name in names])
    return {name: tensor[moved(rows, tensor.device)] for name, tensor in features.items()}


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
