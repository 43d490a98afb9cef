"""A term that makes the noun of a told object and the token of a pictured one the same state, for BAGEL's base.

A picture's token carries shape, colour and place of its object. A word's state may hold the same facts in directions
that no picture uses, and what reconstruction teaches the gen expert then never meets a word (`perf/laptop_bridge.py`).
The term is the squared difference of the values (V of attention) of both in every layer, so that the gen expert, which
reads values, finds the same under a word as under a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reca.core.images import decode
from reca.models.bagel.context import empty, extend, text_block, vit_block
from reca.models.contract import Loss
from reca.toyworld.render import png
from reca.toyworld.scenes import PLACES, Scene, draw_pixels, draw_scene
from reca.toyworld.text import phrase

if TYPE_CHECKING:
    from reca.models.bagel.batch import Conversation
    from reca.models.bagel.model import BagelModel
    from reca.models.contract import Features

SCENES = 12
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


def difference(model: BagelModel, generator: np.random.Generator, scenes: int = SCENES) -> Tensor:
    """Mean over the upper half of the layers of the squared difference of values, relative to the nouns', [].

    Lower layers are left out: a noun has not collected its colour there. Both kinds of token are centred, by place
    where the noun cannot know it.
    """
    network = model.network
    drawn = [draw_scene(generator) for _ in range(scenes)]
    form = FORMS[int(generator.integers(len(FORMS)))]
    texts, nouns = zip(*(told(scene, form, generator) for scene in drawn), strict=True)
    images = [decode(png(draw_pixels(scene)), name="scene") for scene in drawn]
    features = model.encode(images, "read")
    start = empty(network, scenes)
    seen, _ = extend(
        network, start, [vit_block(network, features["understanding"], features["grid"])]
    )
    words, _ = extend(network, start, [text_block(network, model.text.ids(list(texts)))])
    rows = torch.tensor([n for n, found in enumerate(nouns) for _ in found])
    places = torch.tensor([place for found in nouns for place, _ in found])
    ends = torch.tensor([1 + index for found in nouns for _, index in found])  # after BOS
    groups = places if form != "place first" else torch.zeros_like(places)
    membership = torch.nn.functional.one_hot(groups).float()
    averaging = membership / membership.sum(0).clamp(min=1)
    parts = []
    layers = list(zip(seen.kept, words.kept, strict=True))
    for (_, picture), (_, text) in layers[len(layers) // 2 :]:
        own, other = picture.flatten(2)[rows, 1 + places], text.flatten(2)[rows, ends]  # after SOI
        own, other = (state - membership @ (averaging.T @ state) for state in (own, other))
        parts.append((own - other).square().mean() / other.detach().square().mean())
    return torch.stack(parts).mean()


def bind(model: BagelModel, weight: float) -> None:
    """Add the term, times `weight`, to every answer loss of `model` about pictures.

    Its scenes are drawn from the batch's tokens, so that a resumed run draws the same.
    """
    plain = model.answer_loss

    def answer_loss(conversation: Conversation, features: Features | None) -> Loss:
        loss = plain(conversation, features)
        if features is None:
            return loss
        generator = np.random.default_rng(int(conversation.ids.sum()))
        term = weight * difference(model, generator)
        return Loss(loss.total + loss.count * term, loss.count)

    model.answer_loss = answer_loss  # type: ignore[method-assign]
