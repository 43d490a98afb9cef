"""Edits of laptop scenes: a source image, an instruction, and the edited image, unchanged elsewhere.

Five kinds: recolour, remove, add, replace (the shape) and move. Source and target share every other object with its
place, shape, colour and shift, so an examiner can determine exactly what was changed and what was preserved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from reca.toyworld.scenes import COLOUR_NAMES, PLACES, SHAPE_NAMES, Scene, Thing, draw_scene
from reca.toyworld.text import phrase

Generator = np.random.Generator
WORDS = ("add", "make", "move", "remove", "replace", "with")
"""Words of instructions that do not occur in captions and questions."""


@dataclass(frozen=True)
class Edit:
    """One edit; `places` are the places that it changes, all others must stay unchanged."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    places: tuple[int, ...]


def draw_edit(kind: str, generator: Generator) -> Edit:
    """A random edit of a kind (a key of `EDITS`) on the first random scene that allows it."""
    if kind not in EDITS:
        raise ValueError(f"edit {kind!r} is not known; choose one of: {', '.join(EDITS)}")
    while True:
        scene = draw_scene(generator)
        made = EDITS[kind](scene, generator)
        if made is not None:
            return made


def reference(scene: Scene, thing: Thing, generator: Generator) -> str:
    """A unique description of an object in the scene: its shape, with its colour, or with its place."""
    wording = {
        f"the {thing.shape}": [t for t in scene.things if t.shape == thing.shape],
        f"the {thing.colour} {thing.shape}": [
            t for t in scene.things if (t.shape, t.colour) == (thing.shape, thing.colour)
        ],
        f"the {thing.shape} at the {PLACES[thing.place]}": [thing],
    }
    unique = [words for words, meant in wording.items() if meant == [thing]]
    return unique[int(generator.integers(len(unique)))]


# ---- the kinds -----------------------------------------------------------------------------------
def _one(scene: Scene, generator: Generator) -> Thing:
    return scene.things[int(generator.integers(len(scene.things)))]


def _other(names: tuple[str, ...], than: str, generator: Generator) -> str:
    return str(generator.choice([name for name in names if name != than]))


def _free(scene: Scene, generator: Generator) -> int | None:
    taken = {thing.place for thing in scene.things}
    free = [place for place in range(len(PLACES)) if place not in taken]
    return free[int(generator.integers(len(free)))] if free else None


def _with(scene: Scene, old: Thing | None, new: Thing | None) -> Scene:
    """The scene without `old` and with `new`, in reading order."""
    kept = [thing for thing in scene.things if thing != old]
    return Scene(tuple(sorted([*kept, *([new] if new else [])], key=lambda thing: thing.place)))


def _recolour(scene: Scene, generator: Generator) -> Edit | None:
    thing = _one(scene, generator)
    colour = _other(COLOUR_NAMES, thing.colour, generator)
    wording = f"make {reference(scene, thing, generator)} {colour}"
    target = _with(scene, thing, replace(thing, colour=colour))
    return Edit("recolour", wording, scene, target, (thing.place,))


def _remove(scene: Scene, generator: Generator) -> Edit | None:
    if len(scene.things) < 2:
        return None
    thing = _one(scene, generator)
    wording = f"remove {reference(scene, thing, generator)}"
    return Edit("remove", wording, scene, _with(scene, thing, None), (thing.place,))


def _add(scene: Scene, generator: Generator) -> Edit | None:
    place = _free(scene, generator)
    if place is None:
        return None
    shape, colour = str(generator.choice(SHAPE_NAMES)), str(generator.choice(COLOUR_NAMES))
    shifts = [int(shift) for shift in generator.integers(0, 2, size=2)]
    thing = Thing(place, shape, colour, *shifts)
    wording = f"add {phrase(thing, place=True)}"
    return Edit("add", wording, scene, _with(scene, None, thing), (place,))


def _replace(scene: Scene, generator: Generator) -> Edit | None:
    thing = _one(scene, generator)
    shape = _other(SHAPE_NAMES, thing.shape, generator)
    wording = f"replace {reference(scene, thing, generator)} with a {shape}"
    target = _with(scene, thing, replace(thing, shape=shape))
    return Edit("replace", wording, scene, target, (thing.place,))


def _move(scene: Scene, generator: Generator) -> Edit | None:
    place = _free(scene, generator)
    if place is None:
        return None
    thing = _one(scene, generator)
    wording = f"move {reference(scene, thing, generator)} to the {PLACES[place]}"
    moved = _with(scene, thing, replace(thing, place=place))
    return Edit("move", wording, scene, moved, (thing.place, place))


EDITS: dict[str, Callable[[Scene, Generator], Edit | None]] = {
    "recolour": _recolour,
    "remove": _remove,
    "add": _add,
    "replace": _replace,
    "move": _move,
}
