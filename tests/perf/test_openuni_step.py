"""The benchmark of OpenUni's step measures two kinds that give one gradient, at sizes in B-512's proportions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from perf import openuni_step as bench
from perf import pairs
from reca.models.registry import build_model

RESULT = Path(__file__).parents[2] / "docs/results/openuni_step.json"


def test_both_kinds_give_one_gradient():
    torch.manual_seed(0)
    section = bench.scaled(56, 1) | {"resolution": 64, "queries": 8}
    section["vit"] |= {"image_size": 56}
    model = build_model("openuni", section)
    sample = bench.Sample(model, 1)
    assert bench.difference_of(model, sample) < 1e-4
    kept = {
        kind: pairs.kept_bytes(model, partial(bench.loss_of, model, sample, kind))
        for kind in bench.KINDS
    }
    assert kept["cached"] < kept["straightforward"]
    for kind in bench.KINDS:
        assert pairs.peak_bytes(partial(bench.step, model, sample, kind)) > 0


def test_the_recorded_result_is_fast_and_small_enough():
    found = json.loads(RESULT.read_text())
    assert found["straightforward_over_cached"]["time"] >= 1.8
    assert found["cached_over_straightforward"]["peak_memory"] <= 0.7
    assert found["relative_gradient_difference"] < 1e-4
