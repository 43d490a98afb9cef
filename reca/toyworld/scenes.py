"""The toy world: small scenes that are rendered exactly, so that an examiner can recover them exactly from pixels.

A scene is a 2 x 2 grid of places of 8 x 8 pixels, with one to four objects of 8 shapes and 8 colours, each shifted by 0
or 1 pixel. There is no noise, because pixel noise changes the codes of a learned tokenizer (laptop report, part 3
section 1). Eight shapes and colours instead of six reduce the probability of matching a prompt by chance (part 1,
point 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

SIZE, CELL, GRID = 16, 8, 2
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUND = (16, 16, 20)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (160, 50, 200),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
    "pink": (250, 130, 190),
}
# 6 x 6 masks. The IoU of two shapes is at most 0.67 over all shifts, so that the examiner cannot confuse them.
_DRAWINGS = {
    "square": "###### ###### ###### ###### ###### ######",
    "circle": "..##.. .####. ###### ###### .####. ..##..",
    "triangle": "#..... ##.... ###... ####.. #####. ######",
    "frame": "###### #....# #....# #....# #....# ######",
    "tee": "###### ###### ..##.. ..##.. ..##.. ..##..",
    "knot": "##..## ##..## ..##.. ..##.. ##..## ##..##",
    "bolt": "####.. ####.. ..##.. ..##.. ..#### ..####",
    "flag": "###### #####. ####.. ###... ##.... #.....",
}
SHAPES: dict[str, np.ndarray] = {
    name: np.array([[pixel == "#" for pixel in row] for row in drawing.split()])
    for name, drawing in _DRAWINGS.items()
}
SHAPE_NAMES, COLOUR_NAMES = tuple(SHAPES), tuple(COLOURS)
SHAPE_SIZE = 6


@dataclass(frozen=True)
class Thing:
    """One object: its place (0..3, row-major), shape, colour and shift inside the place in pixels (0 or 1)."""

    place: int
    shape: str
    colour: str
    shift_x: int = 0
    shift_y: int = 0


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, at most one per place."""

    things: tuple[Thing, ...]

    def to_json(self) -> list[dict[str, int | str]]:
        """The scene as plain data."""
        return [asdict(thing) for thing in self.things]

    @classmethod
    def from_json(cls, value: list[Mapping[str, int | str]]) -> Scene:
        """The inverse of `to_json`."""
        return cls(tuple(Thing(**thing) for thing in value))  # type: ignore[arg-type]


def draw_scene(generator: np.random.Generator, count: int | None = None) -> Scene:
    """A random scene of 1 to 4 objects, or of `count` objects.

    In 30 % of scenes with several objects all have the same shape, and in half of these also the same colour; counting
    needs them (laptop report, part 2 section 2).
    """
    count = int(generator.integers(1, 5)) if count is None else count
    places = sorted(generator.choice(len(PLACES), size=count, replace=False).tolist())
    shapes = generator.choice(SHAPE_NAMES, size=count).tolist()
    colours = generator.choice(COLOUR_NAMES, size=count).tolist()
    if count > 1 and generator.random() < 0.3:
        shapes = [shapes[0]] * count
        if generator.random() < 0.5:
            colours = [colours[0]] * count
    shifts = generator.integers(0, 2, size=(count, 2)).tolist()
    parts = zip(places, shapes, colours, shifts, strict=True)
    return Scene(tuple(Thing(p, s, c, x, y) for p, s, c, (x, y) in parts))


def draw_pixels(scene: Scene) -> np.ndarray:
    """The rendered image of a scene, uint8 [16, 16, 3]."""
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    pixels[:] = BACKGROUND
    for thing in scene.things:
        row, column = divmod(thing.place, GRID)
        top, left = row * CELL + thing.shift_y, column * CELL + thing.shift_x
        window = pixels[top : top + SHAPE_SIZE, left : left + SHAPE_SIZE]
        window[SHAPES[thing.shape]] = COLOURS[thing.colour]
    return pixels
