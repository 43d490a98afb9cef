"""Runs that tests start in processes of their own, and the recipe they share."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch

from reca.align import checkpoint, trainer
from reca.align.objective import MicroBatch
from reca.align.trainer import CHECKPOINTS, align
from reca.config.recipe import Recipe, TaskRecipe
from tests.align.toy import Toy, toy_data

STEPS = 20
SEED = 3
processes = multiprocessing.get_context("forkserver")
# optimisers import torch._dynamo when first built (3 s); children inherit it
processes.set_forkserver_preload(["torch._dynamo", "tests.align.runs"])


def recipe(**changes) -> Recipe:
    """All four tasks, accumulation, clipping and a moving average; epochs end within steps."""
    tasks = {
        "reca": TaskRecipe(1.0, 3),
        "i2t": TaskRecipe(1.0, 2),
        "t2i": TaskRecipe(0.5, 2),
        "text": TaskRecipe(0.1, 1),
    }
    base = Recipe(
        tasks=tasks,
        steps=STEPS,
        accumulation=2,
        lr=1e-2,
        warmup=4,
        clip=1.0,
        ema=0.9,
        turns_per_sample=1,
        checkpoint_every=5,
        keep=2,
    )
    return replace(base, **changes)


def run(folder: Path, **options):
    """One training session on a fresh toy model; returns the model and the summary."""
    changes = options.pop("changes", {})
    model = options.pop("model", None) or Toy()
    data = options.pop("data", None) or toy_data()
    seed = options.pop("seed", SEED)
    summary = align(model, data, recipe(**changes), seed=seed, work_dir=folder, **options)
    return model, summary


def kill_at(batch: int) -> None:
    """Kill this process by SIGKILL when the n-th batch of images to draw is sent to the device (it is read earlier)."""
    send, left = trainer.on_device, iter(range(batch - 1, -1, -1))

    def killing(micro: MicroBatch, device: torch.device) -> MicroBatch:
        if micro.task in ("reca", "t2i") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(micro, device)

    trainer.on_device = killing


def run_until_killed(folder: Path, reads: int) -> None:
    torch.set_num_threads(1)
    kill_at(reads)
    run(folder)


def run_all(folder: Path, changes: dict) -> None:
    torch.set_num_threads(1)
    run(folder, changes=changes)


def start(target, *args):
    """A child process with torch already imported."""
    child = processes.Process(target=target, args=args)
    child.start()
    return child


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint of a working folder."""
    found = checkpoint.latest(folder / CHECKPOINTS)
    assert found.path is not None
    return {
        f"{group}:{name}": tensor
        for group in ("trainable", "optimizer", "ema")
        for name, tensor in checkpoint.read_tensors(found.path, group)
    }


def assert_same_run(first: Path, second: Path) -> None:
    """Losses, gradient norms, rates, weights, moments, step counters, averages and counts: bit for bit."""
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()
    one, two = tensors_of(first), tensors_of(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different
    paths = [checkpoint.latest(folder / CHECKPOINTS).path for folder in (first, second)]
    states = [checkpoint.read_state(path) for path in paths]
    assert states[0] == states[1]
