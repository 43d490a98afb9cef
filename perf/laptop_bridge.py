"""How far do a tiny BAGEL's states of words coincide with its states of a picture?

    python -m perf.laptop_bridge weights/bagel_tiny

Linear probes (ridge regression on one-hot labels) for shape, colour and place are trained on the values (V of
attention, per layer) of a picture's four tokens and read at the words of told held-out scenes: at the noun and, for the
description with places, at its last word. Values are centred and scaled by kind of token. A probe that reads a colour
at the noun finds the state that reconstruction teaches the gen expert to draw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reca.core.images import decode
from reca.evaluation.tasks.laptop_prompts import held_out_scenes, scene_png
from reca.models.bagel.context import empty, extend, text_block, vit_block
from reca.models.registry import load_model
from reca.toyworld.scenes import COLOUR_NAMES, PLACES, SHAPE_NAMES, Scene
from reca.toyworld.text import phrase

if TYPE_CHECKING:
    from reca.models.bagel.model import BagelModel

SCENES, TRAIN, SEED, RIDGE = 900, 600, 778, 1.0
NAMES = {"shape": SHAPE_NAMES, "colour": COLOUR_NAMES, "place": tuple(PLACES)}


def _labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    things = [thing for scene in scenes for thing in scene.things]
    return {
        "shape": torch.tensor([SHAPE_NAMES.index(thing.shape) for thing in things]),
        "colour": torch.tensor([COLOUR_NAMES.index(thing.colour) for thing in things]),
        "place": torch.tensor([thing.place for thing in things]),
    }


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def _probe(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    x = torch.cat([values, values.new_ones(len(values), 1)], dim=1).double()
    y = torch.nn.functional.one_hot(labels, classes).double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def _right(probe: Tensor, values: Tensor, labels: Tensor) -> float:
    x = torch.cat([values, values.new_ones(len(values), 1)], dim=1).double()
    return round(float(((x @ probe).argmax(1) == labels).double().mean()), 2)


def _told(
    model: BagelModel, scenes: Sequence[Scene], form: str
) -> tuple[list[Tensor], list[tuple[int, int]], list[tuple[int, int]]]:
    """Values by layer of described scenes, and the positions (scene, token) of every noun and of every phrase's end."""
    texts, nouns, ends = [], [], []
    for number, scene in enumerate(scenes):
        words: list[str] = []
        for thing in scene.things:
            words += ["and"] if words else []
            own = phrase(thing, place=form == "last").split()
            if form == "first":
                own = ["at", "the", *PLACES[thing.place].split(), *own]
            start = 1 + len(words)  # BOS comes first
            nouns.append((number, start + own.index(thing.shape)))
            words += own
            ends.append((number, len(words)))
        texts.append(" ".join(words))
    network = model.network
    block = text_block(network, model.text.ids(texts))
    context, _ = extend(network, empty(network, len(scenes)), [block])
    return [value.flatten(2) for _, value in context.kept], nouns, ends


@torch.no_grad()
def bridge(model: BagelModel, scenes: int = SCENES, train: int = TRAIN) -> dict[str, Any]:
    """Accuracy by layer of probes trained on picture tokens, at pictures, nouns and ends of phrases."""
    drawn = held_out_scenes("development", scenes, SEED)
    network = model.network
    seen: list[list[Tensor]] = []
    for first in range(0, scenes, 100):
        part = drawn[first : first + 100]
        features = model.encode([decode(scene_png(s), name="scene") for s in part], "read")
        block = vit_block(network, features["understanding"], features["grid"])
        context, _ = extend(network, empty(network, len(part)), [block])
        seen.append([value.flatten(2)[:, 1:5] for _, value in context.kept])  # SOI comes first
    labels = _labels(drawn)
    rows = torch.tensor([n for n, scene in enumerate(drawn) for _ in scene.things])
    fit = rows < train
    told = {form: _told(model, drawn, form) for form in ("plain", "last", "first")}
    found: dict[str, Any] = {}
    for layer in range(len(seen[0])):
        pictures = torch.cat([part[layer] for part in seen])
        values = _standard(pictures[rows, labels["place"]])
        places = {
            "noun": ("plain", 1), "noun_placed": ("last", 1), "noun_place_first": ("first", 1),
            "end": ("last", 2),
        }  # fmt: skip
        states = {
            name: _standard(
                torch.stack([told[form][0][layer][n, at] for n, at in told[form][which]])
            )
            for name, (form, which) in places.items()
        }
        for name, classes in NAMES.items():
            probe = _probe(values[fit], labels[name][fit], len(classes))
            own = _probe(states["noun"][fit], labels[name][fit], len(classes))
            line = {"picture": _right(probe, values[~fit], labels[name][~fit])}
            line |= {
                where: _right(probe, state[~fit], labels[name][~fit])
                for where, state in states.items()
            }
            line["noun_own"] = _right(own, states["noun"][~fit], labels[name][~fit])
            for where, value in line.items():
                found.setdefault(name, {}).setdefault(where, []).append(value)
    return found


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    torch.set_num_threads(1)
    model: Any = load_model(parser.parse_args().model)
    for name, lines in bridge(model).items():
        for where, values in lines.items():
            print(f"{name:7}{where:18}", *(f"{value:.2f}" for value in values))


if __name__ == "__main__":
    main()
