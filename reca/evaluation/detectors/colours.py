"""GenEval's colour of an object: what CLIP is shown, and how it chooses
(reference/benchmarks.md 2). Pure; no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from reca.core.finite import NonFinite

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
BACKGROUND = 153  # #999
SCALE = 100.0


def texts(name: str) -> list[str]:
    """The thirty texts of a class, colour by colour."""
    return [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]


def crop(
    pixels: np.ndarray,
    box: Sequence[float],
    mask: np.ndarray | None,
    background: int | None = BACKGROUND,
) -> Image.Image:
    """The picture [H, W, 3] uint8 with grey outside the mask [H, W], cut to the box (rounded half to even).

    `background=None` leaves the surroundings as they are.
    """
    shown = pixels
    if mask is not None and background is not None:
        shown = np.where(mask[..., None].astype(bool), pixels, np.uint8(background))
    return Image.fromarray(shown.astype(np.uint8)).crop(tuple(box))  # type: ignore[arg-type]


def class_vectors(text_embeddings: np.ndarray) -> np.ndarray:
    """[colours, templates, D] -> [colours, D]: each text normalised, their mean normalised again."""
    normed = _normalised(np.asarray(text_embeddings, np.float64))
    return _normalised(normed.mean(1))


def logits(image_embeddings: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """100 x cosine, [N, D] and [colours, D] -> [N, colours]."""
    return SCALE * _normalised(np.asarray(image_embeddings, np.float64)) @ vectors.T


def choose(image_embeddings: np.ndarray, vectors: np.ndarray) -> list[str]:
    """The colour of each picture; of equals the first in the list."""
    found = logits(image_embeddings, vectors)
    if not np.isfinite(found).all():
        raise NonFinite("CLIP similarities", [0])  # of crops of one picture
    return [COLOURS[index] for index in found.argmax(-1)]


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
