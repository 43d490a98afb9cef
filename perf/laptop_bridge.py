"""How far do a laptop reader's states of words coincide with its states of a picture?

    python -m perf.laptop_bridge weights/bagel_tiny weights/showo_tiny weights/harmon_tiny weights/janus_tiny \
        --out docs/results/laptop_bridge.json

Linear probes (ridge regression on one-hot labels) for shape, colour and place are trained on the values (V of
attention, per layer) of a picture's four places and read at the words of told development scenes: at the noun, where
the scene is told without places, with places after the objects or before them, and at a phrase's last word. Values are
centred and scaled by kind of token; `noun, own probe` is a probe trained at the noun. A probe that reads a colour at
the noun finds the state that reconstruction teaches the generator to draw. `largest direction` is the first singular
value of the centred values over the second: where it is far above 1, objects differ along one direction only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reca.core.artifacts import write_json
from reca.core.images import decode
from reca.evaluation.tasks.laptop_prompts import held_out_scenes, scene_png
from reca.models.registry import load_model
from reca.toyworld.pretrain.binding import FORMS, by_place, told
from reca.toyworld.pretrain.run import pretraining_of
from reca.toyworld.scenes import COLOUR_NAMES, PLACES, SHAPE_NAMES

if TYPE_CHECKING:
    from reca.models.contract import UnifiedModel

SCENES, TRAIN, SEED, RIDGE = 900, 600, 778, 1.0
NAMES = {"shape": SHAPE_NAMES, "colour": COLOUR_NAMES, "place": tuple(range(len(PLACES)))}
PLACE_WORDS = 4  # "at the top left"


def _standard(values: Tensor) -> Tensor:
    """Values [N, D] with a one, centred and scaled, float64 [N, D + 1]."""
    scaled = (values - values.mean(0)) / (values.std(0) + 1e-6)
    return torch.cat([scaled, scaled.new_ones(len(scaled), 1)], dim=1).double()


def _probe(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    y = torch.nn.functional.one_hot(labels, classes).double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def _right(probe: Tensor, x: Tensor, labels: Tensor) -> float:
    return round(float(((x @ probe).argmax(1) == labels).double().mean()), 2)


def _largest_direction(values: Tensor) -> float:
    """First over second singular value of the centred values [N, D]."""
    singular = torch.linalg.svdvals((values - values.mean(0)).double())
    return round(float(singular[0] / singular[1]), 1)


@torch.no_grad()
def bridge(
    model: UnifiedModel, scenes: int = SCENES, train: int = TRAIN
) -> dict[str, dict[str, list[float]]]:
    """By attribute, kind of token and layer: accuracy of probes trained on picture tokens.

    `largest direction` has by kind of token and layer the first singular value over the second.
    """
    drawn = held_out_scenes("development", scenes, SEED)
    images = [decode(scene_png(scene), name="scene") for scene in drawn]
    values = pretraining_of(model.family).attention_values
    states: dict[str, list[Tensor]] = {}
    objects: dict[str, list[tuple[int, int]]] = {}  # scene and place of every row
    for form in FORMS:
        generator = np.random.default_rng(SEED)
        texts, nouns = zip(*(told(scene, form, generator) for scene in drawn), strict=True)
        pictured, told_values, first = values(model, images, texts)
        seen = [by_place(layer.cpu()) for layer in pictured]
        words = [layer.cpu() for layer in told_values]
        rows = torch.tensor([n for n, found in enumerate(nouns) for _ in found])
        places = torch.tensor([place for found in nouns for place, _ in found])
        at = torch.tensor([first + index for found in nouns for _, index in found])
        states[f"noun, {form}"] = [layer[rows, at] for layer in words]
        if form == "plain":
            states["picture"] = [layer[rows, places] for layer in seen]
        if form == "place last":
            states["end, place last"] = [layer[rows, at + PLACE_WORDS] for layer in words]
        objects[form] = list(zip(rows.tolist(), places.tolist(), strict=True))
    assert len({tuple(order) for order in objects.values()}) == 1  # one order for all forms
    things = [
        next(thing for thing in drawn[n].things if thing.place == place)
        for n, place in objects[FORMS[0]]
    ]
    fit = torch.tensor([n < train for n, _ in objects[FORMS[0]]])
    found: dict[str, dict[str, list[float]]] = {
        "largest direction": {
            where: [_largest_direction(layer) for layer in states[where]]
            for where in ("picture", "noun, plain")
        }
    }
    for name, classes in NAMES.items():
        labels = torch.tensor([classes.index(getattr(t, name)) for t in things])
        for layer in range(len(states["picture"])):
            x = {where: _standard(layers[layer]) for where, layers in states.items()}
            probe = _probe(x["picture"][fit], labels[fit], len(classes))
            own = _probe(x["noun, plain"][fit], labels[fit], len(classes))
            line = {where: _right(probe, v[~fit], labels[~fit]) for where, v in x.items()}
            line["noun, own probe"] = _right(own, x["noun, plain"][~fit], labels[~fit])
            for where, value in line.items():
                found.setdefault(name, {}).setdefault(where, []).append(value)
    return found


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, help="JSON file that gets the probes by model folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for folder in arguments.models:
        found[str(folder)] = lines_by_name = bridge(load_model(folder))
        print(folder)
        for name, lines in lines_by_name.items():
            for where, values in lines.items():
                print(f"{name:18}{where:18}", *(f"{value:.2f}" for value in values))
    if arguments.out:
        write_json(arguments.out, found)


if __name__ == "__main__":
    main()
