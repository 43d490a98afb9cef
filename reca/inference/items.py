"""The items of a benchmark: prompts and questions, each with the facts needed for scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A text-to-image prompt; `id` is unique in its benchmark, `facts` is for the scorer (such as GenEval metadata)."""

    id: str
    text: str
    task: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question about the image `image_id` and then `more_images`, in order, with its correct answer."""

    id: str
    image_id: str
    text: str
    answer: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    more_images: tuple[str, ...] = ()

    @property
    def image_ids(self) -> tuple[str, ...]:
        """All images of the question, in order."""
        return (self.image_id, *self.more_images)
