"""The transcription of Harmon's published losses gives the golden losses and gradients, and the package's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf import harmon_step, harmon_training, steps
from reca.models.harmon import layout as layouts
from tests.reference import golden_cases as golden
from tests.reference.harmon_model import VB, model_of, rows_of

RESULT = Path(__file__).parents[2] / "docs/results/harmon_step.json"
CASES = [
    name
    for name in golden.listed("harmon")
    if name.startswith(("reca_loss", "i2t_loss"))
    and golden.load("harmon", name)[0]["config"].get("grad_scale") == harmon_training.GRADIENT
]


@pytest.mark.parametrize("name", CASES)
def test_the_published_losses_and_gradients(name: str) -> None:
    described, stored = golden.load("harmon", name)
    network = model_of(described).network
    latents = stored["latents"].flatten(1, 2)
    texts = rows_of(stored["input_ids"], stored["attention_mask"])
    if described["kind"] == "i2t":
        labels = rows_of(stored["labels"], stored["attention_mask"])
        loss = harmon_training.answer_loss(network, latents, texts, labels)
    else:
        orders = stored["draw/orders"]
        masked = layouts.masked_count(orders.shape[1], stored["draw/mask_rate"].item())
        rows = stored["draw/t"], stored["draw/noise"]
        loss = harmon_training.reconstruction_loss(network, latents, texts, orders, masked, rows)
    golden.assert_number("loss", loss.item(), described["loss"])
    loss.backward()
    parameters = dict(network.named_parameters())
    golden.assert_gradients(described, parameters, VB)
    for key, gradient in stored.items():
        if key.startswith("grad/"):
            golden.assert_same(key, parameters[key.removeprefix("grad/")].grad, gradient, VB)


def test_both_sides_of_the_step_give_the_same() -> None:
    sample = harmon_step.Sample(harmon_step.build(56, 2), 1 / 16)
    loss, gradient = steps.compared(sample)
    assert loss < 1e-5 and gradient < 1e-5
    flops = {kind: steps.gigaflops(sample, kind) for kind in steps.KINDS}
    assert flops[steps.OURS] < flops[steps.DIRECT]


def test_the_recorded_step_compares_equal_gradients() -> None:
    found = json.loads(RESULT.read_text())
    assert list(found["recomputed"]) == list(harmon_step.RECOMPUTED)
    for measures in found["recomputed"].values():
        assert measures["relative_gradient_difference"] < 1e-5
        assert measures["straightforward_over_ours"]["network"] > 1
