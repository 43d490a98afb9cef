"""The toy world's examiner: recovers shapes, colours and places from pixels, like GenEval's detector from photos.

It assigns each pixel the nearest palette colour, finds connected components of one colour, and chooses the shape
template with the best overlap over all shifts. It depends on the world's shapes, but not on prompts or models, and was
fixed before any model was scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from reca.toyworld.scenes import BACKGROUND, CELL, COLOURS, GRID, SHAPE_SIZE, SHAPES, SIZE, Scene

MIN_PIXELS = 9
ACCEPT_IOU = (
    0.6  # laptop report, part 2 section 2; templates overlap by at most 0.67 with each other
)
_PALETTE = np.array([BACKGROUND, *COLOURS.values()], np.int32)
_NAMES = tuple(COLOURS)
_TEMPLATES = np.stack(list(SHAPES.values())).reshape(len(SHAPES), -1).astype(np.float32)
_EIGHT = np.ones((3, 3), int)  # diagonal neighbours are connected: a knot's arms touch at corners


def palette_indices(pixels: np.ndarray) -> np.ndarray:
    """The nearest palette colour of every pixel; 0 is the background. uint8 [H, W, 3] -> int [H, W]."""
    distance = ((pixels[..., None, :].astype(np.int32) - _PALETTE) ** 2).sum(-1)
    return distance.argmin(-1)


def best_shape(mask: np.ndarray) -> tuple[str, float, tuple[int, int]]:
    """The template with the best overlap with a boolean mask, its IoU and its top-left corner (row, column)."""
    padded = np.pad(mask, SHAPE_SIZE - 1).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SHAPE_SIZE, SHAPE_SIZE))
    shared = windows.reshape(*windows.shape[:2], -1) @ _TEMPLATES.T  # rows, columns, shapes
    overlap = shared / (mask.sum() + _TEMPLATES.sum(-1) - shared)
    row, column, shape = (int(i) for i in np.unravel_index(overlap.argmax(), overlap.shape))
    corner = (row - SHAPE_SIZE + 1, column - SHAPE_SIZE + 1)
    return tuple(SHAPES)[shape], float(overlap[row, column, shape]), corner


def at_scene_size(pixels: np.ndarray) -> np.ndarray:
    """The image in the size of a scene: uint8 [k SIZE, k SIZE, 3] -> [SIZE, SIZE, 3], means of k x k pixels.

    Exact for a scene enlarged by k; ValueError for any other size, in which no template would be found.
    """
    height, width = pixels.shape[:2]
    factor = height // SIZE
    if height != width or height % SIZE or factor == 0:
        raise ValueError(
            f"{width} x {height} pixels: the examiner reads squares whose side is {SIZE} or a multiple of it; set the "
            "resolution of the model, or score another benchmark"
        )
    if factor == 1:
        return pixels
    sums = pixels.reshape(SIZE, factor, SIZE, factor, 3).sum((1, 3), dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def detect(pixels: np.ndarray) -> list[dict[str, Any]]:
    """All objects in an image, uint8 [H, W, 3], as GenEval detections with an additional `place` (0..3) and score 1.

    Boxes are in pixels of the scene. ValueError for pixels of another dtype or a size that `at_scene_size` refuses.
    """
    if pixels.dtype != np.uint8:  # floats may be NaN, which would be cast to an arbitrary colour
        raise ValueError(f"the examiner reads uint8 pixels, not {pixels.dtype}")
    colours = palette_indices(at_scene_size(pixels))
    found = []
    for index in np.unique(colours[colours > 0]):
        labels, count = ndimage.label(colours == index, structure=_EIGHT)
        for component in range(1, count + 1):
            mask = labels == component
            if mask.sum() >= MIN_PIXELS:
                found.extend(_detection(mask, _NAMES[index - 1]))
    return found


def _detection(mask: np.ndarray, colour: str) -> list[dict[str, Any]]:
    shape, overlap, (row, column) = best_shape(mask)
    if overlap < ACCEPT_IOU:
        return []
    box = [column, row, column + SHAPE_SIZE - 1, row + SHAPE_SIZE - 1]
    centre = ((box[1] + box[3]) / 2, (box[0] + box[2]) / 2)
    place = min(int(centre[0] // CELL), GRID - 1) * GRID + min(int(centre[1] // CELL), GRID - 1)
    return [{"class": shape, "color": colour, "box": box, "score": 1.0, "place": place}]


def same_scene(detections: Sequence[Mapping[str, Any]], scene: Scene) -> bool:
    """Whether the detections are exactly the scene's objects: places, shapes and colours."""
    seen = sorted((d["place"], d["class"], d["color"]) for d in detections)
    return seen == sorted((t.place, t.shape, t.colour) for t in scene.things)
