"""Started by torchrun in test_distributed.py: a sharded run in two sessions; rank 0 writes the result."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from reca.align import distributed
from reca.align.trainer import CHECKPOINTS, align
from reca.config.recipe import TaskRecipe
from tests.align.runs import SEED, recipe
from tests.align.toy import Toy, toy_data


def shared_recipe(batch: int, **changed):
    """Per-rank batches of `batch`; nothing in it is drawn per rank but the samples."""
    tasks = {"reca": TaskRecipe(1.0, batch), "i2t": TaskRecipe(0.5, batch)}
    changed = {"tasks": tasks, "lr": 1e-3, "warmup": 0, "turns_per_sample": None} | changed
    return recipe(steps=4, **changed)


def shared_data():
    data = toy_data()
    turns = [conversations[:1] for conversations in data.read_conversations]
    return replace(data, prompts=["Describe it."], read_conversations=turns)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.COMPILER = "aot_eager"  # all but the code generation, which takes its time
    arguments = {"seed": SEED, "work_dir": folder, "device": "cpu"}
    for end in (2, 4):
        model = Toy(hide_all=True)
        chosen = shared_recipe(2, compile=True, activation_checkpointing=True)
        summary = align(model, shared_data(), chosen, stop_at=end, **arguments)
    facts = {
        "resumed_from": summary.resumed_from,
        "sharded": isinstance(model.blocks[0].linear.weight, DTensor),
        "frozen_whole": not isinstance(model.encoder.weight, DTensor),
        "checkpoints": sorted(path.name for path in (folder / CHECKPOINTS).iterdir()),
    }
    if distributed.join("cpu").first:
        (folder / "facts.json").write_text(json.dumps(facts))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
