"""The input of the checks: a model, images, and texts in its vocabulary."""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reca.core.rng import generator, numpy_generator
from reca.models.common.family import NoTokenizer
from reca.models.contract import (
    Edits,
    Features,
    Loss,
    Sampling,
    UnifiedModel,
    Use,
    editor,
    reconstruction_loss,
    text_to_image_loss,
)

ROWS = 3
# Texts of several lengths for vocabularies of a few dozen words; the first ones in a model's vocabulary are used.
TEXTS = (
    "a red circle",
    "describe the image",
    "two red circles and a blue square",
    "a blue square",
    "describe the picture .",
    "a circle left of a square",
    "a",
)
TURNS = (
    ("what color is the circle ?", "red"),
    ("how many circles are there ?", "two red"),
    ("how many ?", "two red"),
    ("what thing ?", "a red circle"),
    ("what this ?", "a blue square"),
    ("what is in the picture ?", "a red circle"),
    ("what there ?", "a"),
)


class NonConformity(AssertionError):
    """A model violates the contract; the message is one line that says how, and which code to look at."""


class NotApplicable(Exception):
    """A check that does not apply to this model; the message says why."""


@dataclass
class Subject:
    """A model to check; checks work on copies of it.

    `texts` and `turns` (question, answer) replace the built-in ones for a model with another vocabulary. `images` are
    RGB; the default is noise of `side` pixels. `reconstructs`: `generate` accepts a condition with features.
    `leave_out`: the names of checks to skip, with the reasons. `source`: what the model was made from, in words.
    """

    model: UnifiedModel
    texts: Sequence[str] = ()
    turns: Sequence[tuple[str, str]] = ()
    images: Sequence[Image.Image] = ()
    side: int = 32
    reconstructs: bool = True
    leave_out: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        self.model.eval()
        self.texts = self._known("texts", self.texts or TEXTS, lambda t: self.model.condition([t]))
        self.turns = self._known("turns", self.turns or TURNS, self._conversation)
        if not self.images:
            pixels = numpy_generator("conformance images").integers(
                0, 256, (ROWS, self.side, self.side, 3), dtype=np.uint8
            )
            self.images = [Image.fromarray(one) for one in pixels]

    def fresh(self) -> UnifiedModel:
        """A copy of the model with its original weights."""
        return deepcopy(self.model)

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """The uses for which this model encodes images."""
        return ("draw", "read", "edit") if isinstance(self.model, Edits) else ("draw", "read")

    @cached_property
    def features(self) -> dict[Use, Features]:
        """Encoded images by use."""
        return {use: self.model.encode(self.images, use) for use in self.uses}

    @property
    def guided(self) -> Sampling:
        """The family's default sampling with few steps and with guidance."""
        own = self.model.default_sampling()
        neutral = self.model.neutral_guidance
        strong = own.guidance if own.guidance > neutral else neutral + 2.0
        few = replace(own, guidance=strong, steps=min(own.steps, 4))
        try:
            self.model.check_sampling(few)
        except ValueError:
            return replace(own, guidance=strong)
        return few

    def noise(self, rows: int = ROWS) -> list[torch.Generator]:
        """One generator per row of a batch of images."""
        return [generator("conformance", "row", row) for row in range(rows)]

    def conversations(self) -> list[list[tuple[str, str]]]:
        """One conversation per image."""
        return [[turn] for turn in self.turns]

    def losses(self, model: UnifiedModel) -> dict[str, Callable[[], tuple[Loss, int, Any]]]:
        """Every loss of the contract by name, as a function that returns (loss, announced count, inputs)."""
        draw, read = self.features["draw"], self.features["read"]

        def drawing(loss: Callable[..., Loss], with_image: bool) -> tuple[Loss, int, Any]:
            noise = model.sample_noise(ROWS, generator("conformance", "noise"))
            count = model.loss_count(noise, with_image)
            before = snapshot([draw, noise])
            found = loss(model, self.texts, draw, noise)
            return found, count, (before, [draw, noise])

        def answering(features: Features | None) -> tuple[Loss, int, Any]:
            spoken = model.conversation(self.conversations(), with_image=features is not None)
            spoken = model.with_noise(spoken, generator("conformance", "answers"))
            before = snapshot([read, spoken])
            return model.answer_loss(spoken, features), spoken.count, (before, [read, spoken])

        def editing() -> tuple[Loss, int, Any]:
            both, own = self.features["edit"], editor(model)
            noise = own.sample_edit_noise(ROWS, generator("conformance", "edits"))
            count, before = noise.count, snapshot([both, noise])
            found = own.edit_loss(both, both, self.texts, noise)
            return found, count, (before, [both, noise])

        known: dict[str, Callable[[], tuple[Loss, int, Any]]] = {
            "reconstruction_loss": lambda: drawing(reconstruction_loss, True),
            "text_to_image_loss": lambda: drawing(text_to_image_loss, False),
            "answer_loss": lambda: answering(read),
            "answer_loss (text only)": lambda: answering(None),
        }
        return known | ({"edit_loss": editing} if "edit" in self.uses else {})

    def _conversation(self, turn: tuple[str, str]) -> Any:
        return self.model.conversation([[turn]], with_image=True)

    def _known(self, name: str, offered: Sequence[Any], use: Callable[[Any], Any]) -> list[Any]:
        """`ROWS` of the offered texts that are in the model's vocabulary, repeated if there are fewer."""
        known, refused = [], None
        for one in offered:
            try:
                use(one)
            except NoTokenizer:
                raise
            except ValueError as fault:
                refused = fault
            else:
                known.append(one)
        if not known:
            raise ValueError(
                f"none of the built-in {name} are in this model's vocabulary ({refused}); give others with "
                "Subject(model, texts=..., turns=...) or `reca check-model ... --text TEXT`"
            )
        return [known[i % len(known)] for i in range(ROWS)]


# ---- helpers of the checks -----------------------------------------------------------------------
def demand(holds: bool, said: str, model: UnifiedModel, *methods: str) -> None:
    """NonConformity with the message `said` and the locations of these methods, unless `holds`."""
    if not holds:
        raise NonConformity(f"{said}; look at {', '.join(place(model, name) for name in methods)}")


def place(model: UnifiedModel, method: str) -> str:
    """The location of a method, `Model.method (folder/file.py:12)`."""
    found = inspect.unwrap(getattr(type(model), method))
    path = Path(inspect.getsourcefile(found) or "?")
    line = inspect.getsourcelines(found)[1]
    return f"{type(model).__name__}.{method} ({path.parent.name}/{path.name}:{line})"


def last_place(fault: Exception) -> str:
    """The location in the model's code: the last frame outside of this suite, torch and transformers."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "/conformance/" not in f.filename]  # fmt: skip
    frame = (own or frames)[-1]
    path = Path(frame.filename)
    return f"{frame.name} ({path.parent.name}/{path.name}:{frame.lineno})"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from tensors_in(getattr(value, one.name))


def snapshot(value: Any) -> list[Tensor]:
    """Copies of all tensors in a value."""
    return [one.detach().clone() for one in tensors_in(value)]


def equal(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are bitwise equal."""
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in pairs)


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding of sums; integers must be equal."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return torch.allclose(found.float(), expected.float(), rtol=1e-4, atol=1e-5 * scale)


@contextmanager
def global_random(seed: int, said: str, model: UnifiedModel, *methods: str) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch; NonConformity if the block used one of them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    begin = _states()
    try:
        yield
        used = [name for name, state in _states().items() if state != begin[name]]
        demand(not used, f"{said} uses the global generator of {', '.join(used)}", model, *methods)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _states() -> dict[str, str]:
    return {
        "random": repr(random.getstate()),
        "numpy": repr(np.random.get_state()),
        "torch": str(torch.get_rng_state().tolist()),
    }
