"""Runs of the families at the size of a test, killed where a test says."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import torch

from reca.align.batches import FeatureData
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from tests.align import runs
from tests.align.test_harmon import Rows
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny

FAMILIES = {
    "showo": showo_tiny,
    "harmon": harmon_tiny,
    "janus": janus_tiny,
    "bagel": bagel_tiny,
    "openuni": openuni_tiny,
}
FROZEN = ("bagel", "openuni")  # families whose reader RecA never trains
PROMPTS = ["describe the image", "what are on the image ?"]
# 8 images, 2 per micro-batch, 2 micro-batches per step: an epoch is 2 steps of 2 reads each
STEPS, PICTURES = 5, 8
CUTS = {"inside an accumulation": 6, "inside an epoch": 7, "between two epochs": 9}
"""The batch of images at which the process is killed; the checkpoint of the previous step exists."""


def recipe(family: str) -> Recipe:
    """A frozen reader reads nothing in training."""
    tasks = {"reca": TaskRecipe(1.0, 2)}
    if family not in FROZEN:
        tasks["i2t"] = TaskRecipe(1.0, 2)
    return Recipe(
        tasks=tasks, steps=STEPS, accumulation=2, lr=1e-3, warmup=2, ema=0.9, clip=1.0,
        precision="fp32", checkpoint_every=1,
    )  # fmt: skip


def data_of(family: str, root: Path) -> FeatureData:
    tiny = FAMILIES[family]
    model, pictures = tiny.model(root / "words"), tiny.pictures(PICTURES)
    talk = [[("what thing ?", "a red circle"), ("how many ?", "two")]]
    data = FeatureData(draw=Rows(model.encode(pictures, "draw")), prompts=PROMPTS)
    if family in FROZEN:
        return data
    read = Rows(model.encode(pictures, "read"))
    return replace(data, read=read, read_conversations=[talk] * PICTURES)


def run(family: str, root: Path, work: Path) -> int:
    """Train a fresh model to the end, or until killed; the step it resumed from."""
    data = data_of(family, root)
    model = FAMILIES[family].model(root / "words")
    return align(model, data, recipe(family), seed=3, work_dir=work).resumed_from


def run_killed(root: Path, cuts: dict[str, int]) -> None:
    """A killed run per family and cut below `root`, each in a fork of this process, which never trains itself."""
    torch.set_num_threads(1)
    for family in FAMILIES:
        for name, read in cuts.items():
            child = os.fork()
            if child == 0:
                runs.kill_at(read)
                run(family, root / family, root / family / name)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == -signal.SIGKILL, (
                f"{family}, {name}: the run ended with {code} before it was killed"
            )
