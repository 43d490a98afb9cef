"""RecA on BAGEL under FSDP2 with recomputation equals one process: two phases run every sharded layer twice a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from reca.align.state import load_trained
from reca.align.trainer import CHECKPOINTS, align
from tests.align.bagel_ranks import SEED, model_and_data, recipe
from tests.models import bagel_tiny as tiny

ROOT = Path(__file__).parents[2]


def test_two_ranks_equal_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, "-m", "tests.align.bagel_ranks", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "facts.json").read_text()) == {
        "sharded": True,
        "frozen_whole": True,
    }
    alone, data = model_and_data(tmp_path / "words")
    before = {name: weight.clone() for name, weight in alone.named_parameters()}
    align(alone, data, recipe(4), seed=SEED, work_dir=tmp_path / "one", device="cpu")
    whole = tiny.model(tmp_path / "again")
    assert load_trained(tmp_path / "work" / CHECKPOINTS, whole) == 3
    trained = set(alone.trainable_parameters())
    moved = 0
    for name, weight in alone.named_parameters():
        # Adam divides by tiny second moments at first, which magnifies the rounding of sums
        torch.testing.assert_close(whole.get_parameter(name), weight, rtol=0, atol=5e-4)
        moved += name in trained and not torch.equal(weight, before[name])
    assert moved == len(trained)
