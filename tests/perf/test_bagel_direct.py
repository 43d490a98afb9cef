"""The transcription of BAGEL's published step gives the golden loss and gradients, and the package's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from perf import bagel_direct, bagel_step, steps
from reca.align.state import freeze
from reca.models.registry import build_model
from tests.reference import golden_cases as golden
from tests.reference.test_bagel_losses import FROZEN, case_of

RESULT = Path(__file__).parents[2] / "docs/results/bagel_step.json"
SHIFT_ONE = [name for name in FROZEN if golden.load("bagel", name)[0]["timestep_shift"] == 1]


@pytest.mark.parametrize("name", SHIFT_ONE)
def test_the_published_loss_and_gradients(name: str) -> None:
    case = case_of(name)
    case.network.zero_grad(set_to_none=True)
    raw, noise = case.stored["packed_timesteps"], case.stored["noise"]
    with torch.no_grad():
        seen = case.vit()
    loss = bagel_direct.loss(case.network, case.packed, seen, case.clean(), noise, raw)
    golden.assert_number("loss", loss.item(), case.described["loss"])
    loss.backward()
    named = dict(case.network.named_parameters())
    golden.assert_gradients(case.described, named)
    stored = {n.removeprefix("grad."): t for n, t in case.stored.items() if n.startswith("grad.")}
    assert stored
    for parameter, gradient in stored.items():
        golden.assert_same(parameter, named[parameter].grad, gradient)


def test_both_sides_of_the_step_give_the_same() -> None:
    torch.manual_seed(0)
    model = build_model("bagel", bagel_step.scaled(56, 2))
    freeze(model)
    sample = bagel_step.Sample(model, 2)
    clean, seen = sample.encoded_directly()
    assert torch.allclose(seen, sample.features["understanding"].flatten(0, 1), atol=1e-5)
    assert len(clean) == sample.noise.count
    loss, gradient = steps.compared(sample)
    assert loss < 1e-5 and gradient < 1e-5
    assert steps.gigaflops(sample, steps.OURS) < steps.gigaflops(sample, steps.DIRECT)
    assert sample.kept_bytes(steps.OURS) < sample.kept_bytes(steps.DIRECT)


def test_the_recorded_step_compares_equal_gradients() -> None:
    found = json.loads(RESULT.read_text())
    assert found["relative_gradient_difference"] < 1e-5
    assert found["straightforward_over_ours"]["network"] > 1
