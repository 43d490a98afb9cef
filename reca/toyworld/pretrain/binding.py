"""A term that makes the noun of a told object and the token of a pictured one the same state.

A picture's token carries shape, colour and place of its object. A word's state may hold the same facts in directions
that no picture uses, and what reconstruction teaches a generator then never meets a word (`perf/laptop_bridge.py`). The
term is the squared difference of the values (V of attention) of both in the upper layers, so that a generator, which
reads values, finds the same under a word as under a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.core.images import decode
from reca.models.contract import Loss, UnifiedModel
from reca.toyworld.render import png
from reca.toyworld.scenes import GRID, PLACES, Scene, draw_pixels, draw_scene
from reca.toyworld.text import phrase

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.contract import Features

Layers = list[Tensor]
# From a model, pictures and texts: the values by layer of the pictures' tokens [B, N, D], row by row, and of the texts'
# tokens [B, T, D], and the index of a text's first word among its tokens.
Values = Callable[[Any, "Sequence[Image]", Sequence[str]], tuple[Layers, Layers, int]]
SCENES = 12
TEMPERATURE = 0.1  # of the contrast
FORMS = ("plain", "place last", "place first")


def told(
    scene: Scene, form: str, generator: np.random.Generator
) -> tuple[str, list[tuple[int, int]]]:
    """A scene told in any order in one of `FORMS`, and (place, index of its noun among the words) of every object."""
    words: list[str] = []
    nouns = []
    for thing in (scene.things[i] for i in generator.permutation(len(scene.things))):
        place = ["at", "the", *PLACES[thing.place].split()]
        words += ["and"] if words else []
        words += place if form == "place first" else []
        words += phrase(thing).split()
        nouns.append((thing.place, len(words) - 1))
        words += place if form == "place last" else []
    return " ".join(words), nouns


def difference(
    values: Values,
    model: UnifiedModel,
    generator: np.random.Generator,
    scenes: int = SCENES,
    contrast: float = 0.0,
) -> Tensor:
    """Mean over the upper half of the layers of the squared difference of values, relative to their squares: 0 if all
    are equal, 1 if they have nothing in common; [].

    Lower layers are left out: a noun has not collected its colour there. Both kinds of token are centred, by place
    where the noun cannot know it. The gradient passes through the squares, too: it would else shrink all values to
    nothing, the faster the smaller they are. One direction with large values in both would be enough for it, though
    (tiny Show-o finds it): `contrast` is the weight of `_told_apart`, for which the objects have to differ.
    """
    drawn = [draw_scene(generator) for _ in range(scenes)]
    form = FORMS[int(generator.integers(len(FORMS)))]
    texts, nouns = zip(*(told(scene, form, generator) for scene in drawn), strict=True)
    images = [decode(png(draw_pixels(scene)), name="scene") for scene in drawn]
    seen, words, first = values(model, images, list(texts))
    rows = torch.tensor([n for n, found in enumerate(nouns) for _ in found])
    places = torch.tensor([place for found in nouns for place, _ in found])
    ends = torch.tensor([first + index for found in nouns for _, index in found])
    groups = places if form != "place first" else torch.zeros_like(places)
    membership = torch.nn.functional.one_hot(groups).float()
    averaging = membership / membership.sum(0).clamp(min=1)
    membership, averaging = (part.to(words[0].device) for part in (membership, averaging))
    same = _same(drawn, rows, places) if contrast else None
    parts = []
    for picture, text in list(zip(map(by_place, seen), words, strict=True))[len(seen) // 2 :]:
        own, other = (
            state - membership @ (averaging.T @ state)
            for state in (picture[rows, places], text[rows, ends])
        )
        parts.append((own - other).square().mean() / (own.square() + other.square()).mean())
        if same is not None:
            parts[-1] = parts[-1] + contrast * _told_apart(own, other, same)
    return torch.stack(parts).mean()


def _same(drawn: Sequence[Scene], rows: Tensor, places: Tensor) -> Tensor:
    """Which pairs of the objects at `places` [N] of scenes `rows` [N] agree in shape and colour, bool [N, N]."""
    things = [
        next((thing.shape, thing.colour) for thing in drawn[n].things if thing.place == place)
        for n, place in zip(rows.tolist(), places.tolist(), strict=True)
    ]
    return torch.tensor([[one == two for two in things] for one in things])


def _told_apart(own: Tensor, other: Tensor, same: Tensor) -> Tensor:
    """InfoNCE of values [N, D] of pictured and told objects in nats, both ways; pairs that are the `same` [N, N] in
    shape and colour count as neither right nor wrong; [].
    """
    alike = F.normalize(own, dim=-1) @ F.normalize(other, dim=-1).T / TEMPERATURE
    right = torch.arange(len(alike), device=alike.device)
    others = right != right.unsqueeze(1)
    alike = alike.masked_fill(others & same.to(alike.device), -torch.inf)
    return (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2


def values_in(layers: Iterable[nn.Module], forward: Callable[[], object]) -> Layers:
    """What `self_attn.v_proj` of every decoder layer gives during `forward()`, each [B, T, D]."""
    found: Layers = []
    hooks = [
        layer.get_submodule("self_attn.v_proj").register_forward_hook(
            lambda _, __, out: found.append(out)
        )
        for layer in layers
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def by_place(states: Tensor) -> Tensor:
    """Means [B, 4, D] over each place's tokens, of an image's tokens [B, N, D] in rows; ValueError for another grid."""
    side = math.isqrt(states.shape[1])
    if side * side != states.shape[1] or side % GRID:
        raise ValueError(
            f"pretrain.binding compares places, of which an image has {GRID} x {GRID}, and this model's images have "
            f"{states.shape[1]} tokens, which no place has whole; set it to {{}}"
        )
    cell = side // GRID
    grid = states.unflatten(1, (GRID, cell, GRID, cell))
    return grid.mean(dim=(2, 4)).flatten(1, 2)


def first_word(row: Sequence[int], words: Sequence[int]) -> int:
    """The index in a prompt's ids at which the ids of its caption begin; ValueError if they are not in it."""
    for index in range(len(row)):
        if list(row[index : index + len(words)]) == list(words):
            return index
    raise ValueError(f"the prompt {list(row)} does not contain {list(words)}")


@contextmanager
def bound(
    values: Values, model: UnifiedModel, weight: float, contrast: float = 0.0
) -> Iterator[None]:
    """For the block, add `difference` times `weight` to every answer loss of `model` about pictures.

    Its scenes are drawn from the batch's tokens, so that a resumed run draws the same.
    """
    if not weight:
        yield
        return
    plain = model.answer_loss

    def answer_loss(conversation: Any, features: Features | None) -> Loss:
        loss = plain(conversation, features)
        if features is None:
            return loss
        generator = np.random.default_rng(_number(conversation.ids))
        term = weight * difference(values, model, generator, contrast=contrast)
        return Loss(loss.total + loss.count * term, loss.count)

    model.answer_loss = answer_loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.answer_loss = plain  # type: ignore[method-assign]


def _number(ids: Tensor | Sequence[Sequence[int]]) -> int:
    """The sum of a batch's tokens."""
    return int(ids.sum()) if isinstance(ids, Tensor) else sum(sum(row) for row in ids)
