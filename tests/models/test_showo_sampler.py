from __future__ import annotations

import itertools
import math

import pytest
import torch

from reca.core.rng import generator
from reca.models.contract import Sampling
from reca.models.showo import sampler
from reca.models.showo.batch import masked_slots
from reca.models.showo.sampler import RowNoise, SamplerOptions


def test_masked_slots_count_follows_the_cosine() -> None:
    t = torch.tensor([0.0, 0.5, 0.999999, 1.0])
    u = torch.rand(4, 16, generator=generator("slots"))
    assert masked_slots(t, u).sum(1).tolist() == [
        16,
        round(16 * math.cos(math.pi / 4)),
        1,
        1,
    ]


def test_masked_slots_are_uniform_over_slots() -> None:
    drawn = torch.rand(4000, 8, generator=generator("uniform"))
    share = masked_slots(torch.full((4000,), 0.75), drawn).float().mean(0)
    assert torch.allclose(share, torch.full((8,), 3 / 8), atol=0.03)


def fixed_logits(batch: int, slots: int, codes: int) -> torch.Tensor:
    return torch.randn(batch, slots, codes, generator=generator("logits"))


def run(options: SamplerOptions, seeds: list[int]) -> list[sampler.Step]:
    logits = fixed_logits(1, 16, 8).expand(len(seeds), -1, -1)
    masked = torch.ones(len(seeds), 16, dtype=torch.bool)
    noise = RowNoise([generator("row", seed) for seed in seeds], 8)
    return list(sampler.sample(lambda codes, _: (logits, None), masked, options, noise))


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_known_codes_stay_and_masks_shrink(order: str, steps: int) -> None:
    told = run(SamplerOptions(steps=steps, order=order), [1, 2])
    assert len(told) == steps
    for before, after in itertools.pairwise(told):
        known = ~before.masked
        assert torch.equal(after.codes[known], before.codes[known])
        assert (after.masked <= before.masked).all()
        assert (after.masked.sum(1) < before.masked.sum(1)).all() or (
            after.masked.sum(1) == 1
        ).all()


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_a_row_draws_the_same_alone_and_in_a_batch(order: str) -> None:
    options = SamplerOptions(steps=5, order=order)
    together = run(options, [1, 2, 3])[-1].codes
    for row, seed in enumerate([1, 2, 3]):
        assert torch.equal(run(options, [seed])[-1].codes[0], together[row])
    assert not torch.equal(together[0], together[1])


def test_codes_follow_their_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.7]).expand(20000, 1, 3)
    noise = torch.empty(20000, 1, 3).exponential_(generator=generator("exponential"))
    drawn = sampler.draw_codes(probabilities, noise)
    share = torch.bincount(drawn.flatten(), minlength=3) / 20000
    assert torch.allclose(share, torch.tensor([0.1, 0.2, 0.7]), atol=0.015)


def test_confidence_order_keeps_the_most_probable() -> None:
    chosen = torch.tensor([[-3.0, -1.0, -2.0, -4.0]])
    masked = torch.tensor([[True, True, True, False]])
    assert sampler.remask(chosen, masked, 2, torch.zeros(1, 4)).tolist() == [
        [True, False, True, False]
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("compounding", [0.75, 0.375, 0.09375, 0.0]), ("linear", [0.75, 0.5, 0.25, 0.0])],
)
def test_confidence_temperature_schedules(schedule: str, expected: list[float]) -> None:
    told = run(SamplerOptions(steps=4, confidence_schedule=schedule), [1])
    assert [step.temperature for step in told] == expected


def test_options_are_checked() -> None:
    options = SamplerOptions.of(Sampling(2.0, 8, options={"order": "random"}))
    assert (options.guidance, options.steps, options.order) == (2.0, 8, "random")
    for sampling, complaint in [
        (Sampling(options={"ordr": "random"}), "unknown option; did you mean 'order'"),
        (Sampling(options={"order": "up"}), "confidence, random"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            SamplerOptions.of(sampling)
    for wrong, complaint in [
        ({"steps": 0}, "steps is 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            Sampling(**wrong)
