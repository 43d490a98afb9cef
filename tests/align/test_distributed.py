"""Two ranks under torchrun, compiled and recomputed, do what one does on the same samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reca.align.distributed import join, trained_blocks, wrapped
from reca.align.state import freeze, load_trained
from reca.align.trainer import CHECKPOINTS, align
from reca.commands.exits import line_of
from tests.align.runs import SEED, tensors_of
from tests.align.toy import Toy
from tests.align.two_ranks import shared_data, shared_recipe

ROOT = Path(__file__).parents[2]


def test_two_ranks_equal_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, "-m", "tests.align.two_ranks", str(two)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    facts = json.loads((two / "facts.json").read_text())
    assert facts["resumed_from"] == 2 and facts["sharded"] and facts["frozen_whole"]
    assert facts["checkpoints"] == ["step-0000000002", "step-0000000004"]

    alone = Toy(hide_all=True)
    align(alone, shared_data(), shared_recipe(4), seed=SEED, work_dir=one, device="cpu")
    expected, found = tensors_of(one), tensors_of(two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    for first, second in zip(log_of(one), log_of(two), strict=True):
        assert first["tokens"] == second["tokens"]
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-6)

    whole = Toy(hide_all=True)
    assert load_trained(two / CHECKPOINTS, whole, freeze(whole)) == 4
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(whole.get_parameter(name), weight, rtol=0, atol=1e-6)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_only_trained_repeated_blocks_are_sharded():
    model = Toy()
    freeze(model)
    assert trained_blocks(model) == list(model.blocks)


def test_without_a_compiler_nothing_is_compiled():
    blocks = list(Toy().blocks)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/no/compiler")}),
        pytest.raises(RuntimeError, match="No working C") as caught,
        wrapped(blocks, recompute=False, compiled=True),
    ):
        pass
    said, status = line_of(caught.value)
    assert said.startswith("align.compile needs a C++ compiler; install one") and status == 1
    assert all("forward" not in block.__dict__ for block in blocks)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    started = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError) as caught:
        join()
    assert str(caught.value) == (
        "resources.gpus: 4 processes were started on this node, but PyTorch sees 2 GPUs here; set resources.gpus to "
        "at most 2, or ask for a node with more"
    )


def test_recomputation_is_undone():
    model = Toy()
    freeze(model)
    x = torch.randn(2, 16)
    expected = model.blocks[0](x)
    with wrapped(list(model.blocks), recompute=True):
        again = model.blocks[0](x)
        assert "forward" in model.blocks[0].__dict__
    assert torch.equal(expected, again)
    assert "forward" not in model.blocks[0].__dict__
