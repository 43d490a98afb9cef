"""Pictures for prompts, pictures drawn again, answers to questions: what a model makes for benchmarks.

A picture is a function of (benchmark, prompt id, sample index, seed) and the model: neither the
batch nor the number of devices is in it. Finished batches are kept, so a killed run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from reca import records
from reca.imageset import ImageSet, ImageSetWriter
from reca.randomness import generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.benchmarks.items import Prompt, Question
    from reca.models.unified import Features, Sampling, UnifiedModel

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
_log = logging.getLogger(__name__)


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Origin:
    """What all pictures of one run share: the model that draws (any hash of it), benchmark, seed.

    `code` is a fingerprint of the modules that draw; unfinished work of other code is not used.
    """

    model: str
    benchmark: str
    seed: int
    code: str = ""


@dataclass(frozen=True)
class _Job:
    """One picture to draw; with `image`, from that picture's own embeddings."""

    key: str
    index: int
    text: str
    noise: tuple[str, str, int, int]
    recipe: dict[str, Any]
    image: Image | None = None


# ---- the three things that a model makes ---------------------------------------------------------
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
    """Draw every prompt and add the pictures to `writer` in prompt order; gives how many were drawn now.

    Prompts of like length share a batch. `prefix` (a guidance level, say) goes before the keys, but
    not into the noise, so levels are compared under the same noise. `work` keeps finished batches.
    """
    jobs = [
        _job(prompt.id, index, prompt.text, prefix, origin, sampling)
        for prompt in prompts
        for index in range(images_per_prompt)
    ]
    return _draw_all(model, jobs, writer, origin, sampling, batch_size, work, progress)


def reconstruct(
    model: UnifiedModel,
    images: Mapping[str, Image],
    writer: ImageSetWriter,
    origin: Origin,
    sampling: Sampling,
    *,
    prompt: str,
    prefix: str = "",
    batch_size: int = 16,
    work: Path | None = None,
    progress: Progress = _silent,
) -> int:
    """Draw pictures (by id) again from their own understanding embeddings; see `generate`."""
    jobs = [
        _job(name, 0, prompt, prefix, origin, sampling, image) for name, image in images.items()
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
    """Greedy answers by question id, in the questions' order; `images` are the pictures by image id."""
    missing = [question.id for question in questions if question.image_id not in images]
    if missing:
        raise ValueError(
            f"{len(missing)} questions ask about pictures that are not there: {missing[0]}"
        )
    in_order = sorted(questions, key=lambda question: (question.image_id, question.id))
    found: dict[str, str] = {}
    with inference(model):
        for batch in _chunks(in_order, batch_size):
            read = _read(model, [question.image_id for question in batch], images)
            given = model.answer([question.text for question in batch], read, max_new_tokens)
            found |= {question.id: text for question, text in zip(batch, given, strict=True)}
            progress(len(found), len(in_order))
    return {question.id: found[question.id] for question in questions}


def draw(
    model: UnifiedModel,
    texts: Sequence[str],
    features: Features | None,
    sampling: Sampling,
    noise: Sequence[torch.Generator],
) -> list[Image]:
    """One picture per text, from text alone or from text and understanding features (RecA)."""
    pushed_from = model.unconditional(len(texts)) if sampling.guidance > 0 else None
    return model.generate(model.condition(texts, features), pushed_from, sampling, noise)


@contextmanager
def inference(model: UnifiedModel) -> Iterator[None]:
    """No gradients and no dropout inside the block; the model's mode is restored behind it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# ---- drawing in batches --------------------------------------------------------------------------
def _job(
    name: str,
    index: int,
    text: str,
    prefix: str,
    origin: Origin,
    sampling: Sampling,
    image: Image | None = None,
) -> _Job:
    noise = (origin.benchmark, name, index, origin.seed)
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
        "options": dict(sampling.extra or {}),
    }
    if image is not None:
        recipe["image_sha256"] = records.sha256_bytes(image.tobytes())
    return _Job(f"{prefix}/{name}" if prefix else name, index, text, noise, recipe, image)


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
    with _kept(work, origin.code) as kept:
        finished = _finished(jobs, kept)
        missing = [job for job in jobs if (job.key, job.index) not in finished]
        missing.sort(key=lambda job: len(job.text))  # stable: equal lengths stay in prompt order
        with inference(model):
            for batch in _chunks(missing, batch_size):
                path = _draw_batch(model, batch, sampling, kept)
                pictures = ImageSet(path)
                finished |= {(job.key, job.index): pictures for job in batch}
                progress(len(finished), len(jobs))
        for job in jobs:
            picture = finished[job.key, job.index].png(job.key, job.index)
            writer.add(job.key, job.index, picture, job.recipe)
    return len(missing)


@contextmanager
def _kept(work: Path | None, code: str) -> Iterator[Path]:
    """The folder for finished batches: below `work` one for each version of the code."""
    if work is not None:
        yield work / (code[:16] or "any")
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary)


def _draw_batch(model: UnifiedModel, batch: Sequence[_Job], sampling: Sampling, kept: Path) -> Path:
    """Draw one batch into a set of its own, named by its recipes."""
    pictures = [job.image for job in batch if job.image is not None]
    features = model.encode(pictures, "draw") if pictures else None
    noise = [generator(*job.noise) for job in batch]
    images = draw(model, [job.text for job in batch], features, sampling, noise)
    name = records.sha256_json([[job.key, job.recipe] for job in batch])
    with ImageSetWriter(kept / f"{name}.tar") as writer:
        for job, image in zip(batch, images, strict=True):
            writer.add(job.key, job.index, image, job.recipe)
    return kept / f"{name}.tar"


def _finished(jobs: Sequence[_Job], kept: Path) -> dict[tuple[str, int], ImageSet]:
    """Where the pictures lie that an earlier sitting drew by exactly these recipes."""
    wanted = {(job.key, job.index): job.recipe for job in jobs}
    found: dict[tuple[str, int], ImageSet] = {}
    for path in sorted(kept.glob("*.tar")):
        try:
            pictures = ImageSet(path)
            for key, index in pictures:
                if wanted.get((key, index)) == pictures.recipe(key, index):
                    pictures.image(key, index)  # a damaged picture is drawn again
                    found[key, index] = pictures
        except ValueError as problem:
            _log.warning("%s", problem)
    if found:
        _log.info("%d of %d pictures were drawn in an earlier sitting", len(found), len(jobs))
    return found


def _read(model: UnifiedModel, names: Sequence[str], images: Mapping[str, Image]) -> Features:
    """Features of the named pictures, one row per name; each picture is encoded once."""
    distinct = list(dict.fromkeys(names))
    features = model.encode([images[name] for name in distinct], "read")
    rows = torch.tensor([distinct.index(name) for name in names])
    return {name: tensor[rows.to(tensor.device)] for name, tensor in features.items()}


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
