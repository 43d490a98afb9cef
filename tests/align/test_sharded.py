"""Published recipes that several GPUs share, at scale tiny, launched as the workflow launches them; BAGEL's is killed.

Two processes under FSDP2 must train what one process trains on the micro-batches of both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reca.align import checkpoint, trainer
from reca.align.batches import plan_step, with_rows
from reca.align.distributed import ProcessGroup
from reca.align.objective import MicroBatch
from reca.cli import main
from tests.align import published

ROOT = Path(__file__).parents[2]
CASES = {"bagel": ("paper_bagel", "bagel_7b"), "janus": ("janus_pro_7b", "janus_pro_7b")}
# The two round sums differently, and bfloat16 and Adam's division magnify it: relative deviation of the loss of a
# step, and of what training added to the weights.
LOSS, UPDATE = 1e-3, 0.05


def launcher(name: str, model: str) -> list[str]:
    """What starts an alignment in the workflow."""
    file = ROOT / "workflow/rules/resources.smk"
    rules: dict[str, Any] = {"EXPERIMENT": published.at_scale(name)}
    exec(compile(file.read_text(), file, "exec"), rules)
    env, threads, python, *words = rules["launcher"](model).split()
    assert (env, threads, python) == ("env", "OMP_NUM_THREADS=1", "python3")
    assert "--nproc-per-node=2" in words
    return [sys.executable, *words]


def launched(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.mark.parametrize("family", CASES)
def test_two_processes_equal_one(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = CASES[family]
    recipe = published.at_scale(name).models[model].align
    rehearsal = published.Rehearsal(tmp_path)
    words, out = rehearsal.command(name, model, "reca")
    launch, work = launcher(name, model), out.with_name("work")

    if family == "bagel":
        drawn = recipe.accumulation  # batches of images in a step
        killing = ["tests.align.killed_rank" if word == "reca" else word for word in launch]
        killed = launched([*killing, str(drawn), *words])
        assert killed.returncode != 0 and not out.exists() and "SIGKILL" in killed.stderr
        assert checkpoint.latest(work / trainer.CHECKPOINTS).step == 1, killed.stderr[-3000:]

    resumed = launched([*launch, *words])
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert not work.exists() and main(["audit", str(out)]) == 0

    monkeypatch.setattr(trainer, "prepared_steps", of_both_ranks)
    alone = rehearsal.train(name, model, "reca", keep=recipe.keep)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, alone)
    ]
    for line, single in zip(*logs, strict=True):
        assert (line["step"], line["tokens"]) == (single["step"], single["tokens"])
        assert line["loss"] == pytest.approx(single["loss"], rel=LOSS)
    before, sharded, whole = (
        load_file(at / "model.safetensors")
        for at in (rehearsal.base(published.at_scale(name).models[model]), out, alone)
    )
    changed = [key for key in whole if not torch.equal(before[key], whole[key])]
    assert changed == [key for key in sharded if not torch.equal(before[key], sharded[key])]
    apart = sum(float((sharded[key] - whole[key]).float().square().sum()) for key in changed)
    added = sum(float((whole[key] - before[key]).float().square().sum()) for key in changed)
    assert apart**0.5 < UPDATE * added**0.5


def of_both_ranks(
    model: Any, data: Any, recipe: Any, steps: range, *, seed: int, processes: ProcessGroup
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of two ranks, one after the other."""
    for step in steps:
        yield [
            with_rows(batch, data, processes.device)
            for rank in range(2)
            for batch in plan_step(
                model, data, recipe, seed=seed, step=step, processes=ProcessGroup(rank, 2)
            )
        ]
