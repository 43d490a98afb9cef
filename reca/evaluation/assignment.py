"""The work of one sampling job: images in passes of one guidance level each, and questions about images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reca.inference.items import Prompt, Question

ReadImages = Callable[[Sequence[Question]], Mapping[str, bytes]]


def _none(questions: Sequence[Question]) -> Mapping[str, bytes]:
    return {}


@dataclass(frozen=True)
class ImagePass:
    """Images of one kind at one guidance level.

    `prefix` is prepended to the image keys but does not enter the noise seed, so all levels share the same noise.
    `sources` (encoded files by prompt id) are the images to edit or to reconstruct.
    """

    need: Literal["draw", "edit", "reconstruct"]
    prompts: Sequence[Prompt]
    guidance: float
    prefix: str = ""
    images_per_prompt: int = 1
    sources: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """Everything that a job samples. `read` returns the encoded images of the given questions by image id."""

    passes: tuple[ImagePass, ...] = ()
    questions: Sequence[Question] = ()
    read: ReadImages = _none
    batch_size: int = 8  # images or answers per model call
    max_new_tokens: int | None = None  # per answer; None: the family's `longest_answer`
