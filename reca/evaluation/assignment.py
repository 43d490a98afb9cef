"""What one job asks of a model: images in passes of one guidance level each, and questions about images."""

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
    """Images of one need at one guidance level.

    `prefix` comes before the keys, but not into the noise, so that levels are compared under the same noise. `sources`
    (files by prompt id) are the images before edits, or the originals of reconstructions.
    """

    need: Literal["draw", "edit", "reconstruct"]
    prompts: Sequence[Prompt]
    guidance: float
    prefix: str = ""
    images_per_prompt: int = 1
    sources: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """All that a job samples. `read` gives the files of the images that some questions ask about, by image id."""

    passes: tuple[ImagePass, ...] = ()
    questions: Sequence[Question] = ()
    read: ReadImages = _none
    batch_size: int = 8  # images or answers in one pass of the model
    max_new_tokens: int = 128  # of an answer
