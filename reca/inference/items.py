"""The items of a benchmark: prompts and questions, each with the facts it is scored by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A text to draw. `id` is unique in its benchmark; `facts` is what the scorer needs (GenEval metadata, say)."""

    id: str
    text: str
    task: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question about the image `image_id` and, in this order, `more_images`, with its true answer."""

    id: str
    image_id: str
    text: str
    answer: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    more_images: tuple[str, ...] = ()

    @property
    def image_ids(self) -> tuple[str, ...]:
        """All its images, in order."""
        return (self.image_id, *self.more_images)
