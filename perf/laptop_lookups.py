"""How many steps a tiny reader needs for each kind of question about pictures, alone and together.

    python -m perf.laptop_lookups FOLDER colour:500 place_by_shape:1000 all:3000 --batch 256 [--binding 0.3] \
        [--record docs/results/laptop_lookups.jsonl]

FOLDER is a model of a laptop pretraining run, such as `b_align` of `python -m perf.laptop_search base`. Each part is
kinds of question, joined by commas, and steps; a sample is one question about a picture of several objects. Every 200
steps the share of exact answers about held-out development scenes is printed, by kind.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reca.align.state import freeze
from reca.config.compose import load
from reca.core.devices import placed
from reca.core.images import decode
from reca.evaluation.tasks.laptop import same_answer
from reca.evaluation.tasks.laptop_prompts import scene_png
from reca.models.registry import load_model
from reca.toyworld import text
from reca.toyworld.pretrain.binding import bound
from reca.toyworld.pretrain.run import pretraining_of
from reca.toyworld.scenes import Scene, draw_scene

if TYPE_CHECKING:
    from reca.models.contract import Features, UnifiedModel

EXPERIMENT, PHASE = "laptop_pretrain_bagel_bound", "c_joint"  # which weights are trained
HELD_OUT, EVERY, ENCODED = 500, 200, 250
Ask = Callable[[Scene, np.random.Generator], "text.Turn | None"]


def bound_question(scene: Scene, generator: np.random.Generator) -> text.Turn:
    """One of `bound_questions`."""
    asked = text.bound_questions(scene, generator)
    return asked[int(generator.integers(len(asked)))]


KINDS: dict[str, Ask] = {
    **text.ASKED,
    "bound": bound_question,
}
ALL = (*text.QUESTIONS, "describe")


class Reader:
    """A model, its encoded scenes, and questions about them."""

    def __init__(self, model: UnifiedModel, scenes: int, seed: int) -> None:
        self.model, self.generator = model, np.random.default_rng(seed)
        self.scenes = [draw_scene(self.generator) for _ in range(scenes)]
        images = [decode(scene_png(scene), name="scene") for scene in self.scenes]
        parts = [model.encode(images[i : i + ENCODED], "read") for i in range(0, scenes, ENCODED)]
        self.features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def sample(
        self, kinds: Sequence[str], count: int, scenes: range
    ) -> tuple[list[text.Turn], Features]:
        """`count` questions of equally likely kinds, and the features of their pictures."""
        rows: list[int] = []
        turns: list[text.Turn] = []
        while len(rows) < count:
            index = int(self.generator.integers(scenes.start, scenes.stop))
            kind = kinds[int(self.generator.integers(len(kinds)))]
            scene = self.scenes[index]
            # a lookup is trivial where a scene has one object
            if kind in (*text.LOOKED_UP, "place_by_shape") and len(scene.things) < 2:
                continue
            turn = KINDS[kind](scene, self.generator)
            if turn is not None:
                rows.append(index)
                turns.append(turn)
        return turns, {
            name: tensor[torch.tensor(rows, device=tensor.device)]
            for name, tensor in self.features.items()
        }

    def right(self, kinds: Sequence[str], count: int = 128) -> dict[str, float]:
        """Share of exact answers by kind about held-out scenes."""
        held_out = range(len(self.scenes) - HELD_OUT, len(self.scenes))
        found = {}
        for kind in dict.fromkeys(kinds):
            turns, features = self.sample([kind], count, held_out)
            longest = 30 if kind == "describe" else 8
            with torch.no_grad():
                given = self.model.answer([question for question, _ in turns], features, longest)
            pairs = zip(given, turns, strict=True)
            found[kind] = round(float(np.mean([same_answer(g, t[1]) for g, t in pairs])), 2)
        return found


def learn(reader: Reader, parts: Sequence[str], rate: float, batch: int) -> list[dict[str, Any]]:
    """Train on each part in turn; the shares of exact answers every 200 steps and at its end."""
    weights = [weight for weight in reader.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    known = range(len(reader.scenes) - HELD_OUT)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()

    def note(part: str, step: int, kinds: Sequence[str]) -> None:
        seconds = round(time.monotonic() - began, 1)
        rows.append({"part": part, "step": step, "right": reader.right(kinds), "seconds": seconds})
        print(rows[-1], flush=True)

    for part in parts:
        names, _, steps = part.partition(":")
        kinds = ALL if names == "all" else names.split(",")
        for step in range(int(steps)):
            if step % EVERY == 0:
                note(part, step, kinds)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 30)
            turns, features = reader.sample(kinds, batch, known)
            conversation = reader.model.conversation([[turn] for turn in turns])
            optimizer.zero_grad()
            reader.model.answer_loss(conversation, features).mean.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        note(part, int(steps), ALL)
    return rows


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "parts", nargs="+", help="KINDS:STEPS, such as colour,place:500 or all:2000"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--binding", type=float, default=0.0, help="weight of the binding term")
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--record", type=Path, help="file that gets the run as a line of JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = placed(load_model(arguments.model))
    pretrain = load(EXPERIMENT).pretrain
    assert pretrain is not None
    freeze(model, pretrain.phases[PHASE].trains)
    reader = Reader(model, arguments.scenes, arguments.seed)
    with ExitStack() as stack:
        stack.enter_context(
            bound(pretraining_of(model.family).attention_values, model, arguments.binding)
        )
        rows = learn(reader, arguments.parts, arguments.lr, arguments.batch)
    if arguments.record is not None:
        chosen = {name: value for name, value in vars(arguments).items() if name != "record"}
        with arguments.record.open("a") as handle:
            handle.write(json.dumps({**chosen, "model": str(arguments.model), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
