"""GenEval's colour classification of an object: CLIP's input, and the choice from its embeddings.

Pure functions, without the network (reference/benchmarks.md 2).
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
    """The thirty texts of a class, ordered by colour, then template."""
    return [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]


def crop(
    pixels: np.ndarray,
    box: Sequence[float],
    mask: np.ndarray | None,
    background: int | None = BACKGROUND,
) -> Image.Image:
    """Crop an image [H, W, 3] uint8 to a box (rounded half to even), with grey outside the mask [H, W].

    `background=None` keeps the pixels outside the mask.
    """
    shown = pixels
    if mask is not None and background is not None:
        shown = np.where(mask[..., None].astype(bool), pixels, np.uint8(background))
    return Image.fromarray(shown.astype(np.uint8)).crop(tuple(box))  # type: ignore[arg-type]


def class_vectors(text_embeddings: np.ndarray) -> np.ndarray:
    """Class embeddings, [colours, templates, D] -> [colours, D]: the normalised mean of the normalised texts."""
    normed = _normalised(np.asarray(text_embeddings, np.float64))
    return _normalised(normed.mean(1))


def logits(image_embeddings: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """100 x cosine similarity of images [N, D] and colours [colours, D] -> [N, colours], float64."""
    return SCALE * _normalised(np.asarray(image_embeddings, np.float64)) @ vectors.T


def choose(image_embeddings: np.ndarray, vectors: np.ndarray) -> list[str]:
    """The colour of each image embedding [N, D], the first one on ties; NonFinite if a similarity is not finite."""
    found = logits(image_embeddings, vectors)
    if not np.isfinite(found).all():
        raise NonFinite("CLIP similarities", [0])  # of crops of one image
    return [COLOURS[index] for index in found.argmax(-1)]


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
