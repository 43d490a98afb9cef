"""Checks of a model's output: images and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL.Image import Image

from reca.conformance.subject import ROWS, Subject, demand, global_random
from reca.core.rng import generator
from reca.models.contract import Sampling, UnifiedModel

GREYS = 1  # grey levels, for rounding of sums in another order
NEAR = 1e-6  # distance from the neutral guidance
TOKENS = 6  # per answer
STRONGER = (
    1,
    10,
    100,
)  # factors on guidance, for untrained models, whose condition has little effect


def images_ignore_the_batch(subject: Subject) -> None:
    """An image depends on its text and its generator, but not on its batch or on global random numbers."""
    model, plan = subject.model, subject.guided
    for features in (False, True) if subject.reconstructs else (False,):
        what = "reconstruction" if features else "image of a text"
        for sampling in _plans(subject):
            _check_rows(subject, sampling, features, what)
    other = _images(subject, plan, [0], False, noise=[generator("conformance", "other")])
    demand(
        distance(other, _images(subject, plan, [0], False)) > 0,
        "another generator gives the same image; generate does not use its generators",
        model,
        "generate",
    )


def _plans(subject: Subject) -> list[Sampling]:
    """The family's default sampling and, for families that sample codes, one with guidance that amplifies differences.

    The condition has little effect in an untrained model, so attention to padding would otherwise change no code.
    """
    plan = subject.guided
    is_discrete = not subject.features["draw"]["target"].is_floating_point()
    return [plan, replace(plan, guidance=plan.guidance * STRONGER[-1])] if is_discrete else [plan]


def _check_rows(subject: Subject, plan: Sampling, features: bool, what: str) -> None:
    model = subject.model
    with global_random(1, "generate", model, "generate"):
        together = _images(subject, plan, range(ROWS), features)
    with global_random(2, "generate", model, "generate"):
        again = _images(subject, plan, range(ROWS), features)
    modes = sorted({image.mode for image in together})
    demand(
        len(together) == ROWS and modes == ["RGB"],
        f"generate returns {len(together)} images of modes {modes} for {ROWS} conditions; return one RGB image per row",
        model,
        "generate",
    )
    demand(
        distance(together, again) == 0,
        f"the {what} differs between two calls with equal generators",
        model,
        "generate",
    )
    for row in range(ROWS):
        far = distance(_images(subject, plan, [row], features), together[row : row + 1])
        demand(
            far <= GREYS,
            f"row {row} of a batch differs from the same {what} alone by {far} grey levels; noise must come from "
            "the row's own generator, and padding must not be attended to",
            model,
            "generate",
        )


def neutral_guidance(subject: Subject) -> None:
    """Images at `neutral_guidance` equal those without guidance, nearly so just above it, but not far above it."""
    model, plan = subject.model, subject.guided
    neutral = model.neutral_guidance
    off = _images(subject, replace(plan, guidance=0.0), range(ROWS), False)
    at = _images(subject, replace(plan, guidance=neutral), range(ROWS), False)
    far = distance(off, at)
    demand(
        far <= GREYS,
        f"guidance {neutral:g} (neutral_guidance) differs from no guidance (0) by {far} grey levels",
        model,
        "generate",
        "unconditional",
    )
    near = _images(subject, replace(plan, guidance=neutral + NEAR), range(ROWS), False)
    far = distance(near, at)
    demand(
        far <= GREYS,
        f"guidance {neutral:g} + {NEAR:g} differs from {neutral:g} by {far} grey levels: the guidance formula has "
        "another neutral value; set neutral_guidance of the class",
        model,
        "generate",
    )
    scales = [plan.guidance * factor for factor in STRONGER]
    demand(
        any(
            distance(_images(subject, replace(plan, guidance=s), range(ROWS), False), at)
            for s in scales
        ),
        f"guidance {scales[-1]:g} gives the same images as none: the unconditional condition is not used",
        model,
        "generate",
        "unconditional",
    )


def answers_ignore_the_batch(subject: Subject) -> None:
    """A question has the same answer alone and in a batch; with max_new_tokens=0 the answer is empty."""
    model, asked = subject.model, [question for question, _ in subject.turns]
    for features in (subject.features["read"], None):
        with global_random(1, "answer", model, "answer"):
            together = model.answer(asked, features, TOKENS)
        demand(
            len(together) == ROWS and all(isinstance(answer, str) for answer in together),
            f"answer returns {together!r} for {ROWS} questions; return one text per row",
            model,
            "answer",
        )
        for row, question in enumerate(asked):
            own = None if features is None else {n: t[row : row + 1] for n, t in features.items()}
            alone = model.answer([question], own, TOKENS)
            demand(
                alone == together[row : row + 1],
                f"answer to {question!r} is {alone[0]!r} alone and {together[row]!r} in a batch; padding must not be "
                "attended to, and positions must be counted per row",
                model,
                "answer",
            )
        demand(
            model.answer(asked, features, 0) == [""] * ROWS,
            "answer with max_new_tokens=0 is not empty",
            model,
            "answer",
        )


def draw(
    model: UnifiedModel,
    texts: Sequence[str],
    features: dict[str, torch.Tensor] | None,
    plan: Sampling,
    noise: Sequence[torch.Generator],
) -> list[Image]:
    """Images of texts, or of texts and features, generated like in `reca.inference`."""
    unconditional = model.unconditional(len(texts)) if plan.guidance > 0 else None
    with torch.no_grad():
        return model.generate(model.condition(texts, features), unconditional, plan, noise)


def _images(
    subject: Subject,
    plan: Sampling,
    rows: Sequence[int],
    reconstruct: bool,
    noise: Sequence[torch.Generator] | None = None,
) -> list[Image]:
    texts = [subject.texts[row] for row in rows]
    features = {name: one[list(rows)] for name, one in subject.features["draw"].items()}
    own = [subject.noise()[row] for row in rows] if noise is None else noise
    return draw(subject.model, texts, features if reconstruct else None, plan, own)


def distance(first: Sequence[Image], second: Sequence[Image]) -> int:
    """The largest difference between two lists of images in grey levels; 256 if their sizes differ."""
    if [image.size for image in first] != [image.size for image in second]:
        return 256
    pairs = zip(first, second, strict=True)
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in pairs)
