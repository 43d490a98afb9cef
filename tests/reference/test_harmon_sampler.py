"""Harmon's sampling loop against the official one: guided, with a linear schedule, and conditioned on a picture."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from reca.models.common import packing
from reca.models.harmon import sampler
from reca.models.harmon.batch import Condition
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.network import Harmon
from tests.reference import golden_cases as golden
from tests.reference.harmon_model import Notebook, model_of, rows_of, with_image

CASES = golden.cases("harmon", __file__)
INPUTS = ("pixel_values", "input_ids", "attention_mask", "orders", "prompt_ids", "uncond_ids")


def overridden(model: HarmonModel, described: dict[str, Any]) -> HarmonModel:
    """Scale the noise rows of the last layer as the case says: untrained, the process would explode."""
    channels = model.config.mar.latent_channels
    parameters = dict(model.network.named_parameters())
    for name, text in described.get("weight_override", {}).items():
        (factor,) = re.findall(r"multiplied by ([\d.e+-]+)", text)
        with torch.no_grad():
            parameters[name][:channels] *= float(factor)
    return model


def conditions_of(stored: dict[str, Tensor], model: HarmonModel) -> tuple[Condition, Condition]:
    """The conditional and the unconditional half of the case."""
    batch = len(stored["orders"]) // 2
    if "prompt_ids" in stored:
        latents = model.frozen.latents(stored["pixel_values"])
        asked, other = (stored[name].tolist() for name in ("prompt_ids", "uncond_ids"))
        return Condition([with_image(asked)] * batch, latents=latents), Condition([other] * batch)
    rows = rows_of(stored["input_ids"], stored["attention_mask"])
    return Condition(rows[:batch]), Condition(rows[batch:])


class Run:
    """The whole loop of a case, with the stored noise."""

    def __init__(self, name: str) -> None:
        self.described, stored = golden.load("harmon", name)
        self.stored = stored
        self.model = overridden(model_of(self.described, with_vae=True), self.described)
        self.batch = len(stored["orders"]) // 2
        self.options = sampler.SamplerOptions(
            self.described["cfg"],
            self.described["num_iter"],
            self.described["temperature"],
            self.described.get("cfg_schedule", "constant"),
        )
        self.notes = Notebook()
        self.served = 0
        # everything is packed here that can be; the cases' weights are small
        # The class's method: the sampler calls a twin of the network.
        method = self.notes.noted("hidden", Harmon.hidden)
        with (
            torch.no_grad(),
            patch.object(Harmon, "hidden", method),
            patch.object(packing, "LEAST", 0),
        ):
            self.drawing = sampler.prepare(self.model.network, *conditions_of(stored, self.model))
            self.notes.watch(self.drawing, "encoded")
            orders = stored["orders"][: self.batch]
            self.steps = list(sampler.sample(self.drawing, orders, self.options, self.noise))

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """The stored noise of the next step; that of the unconditional half is never used."""
        first = self.stored[f"step{self.served}/init_noise"]
        later = self.stored[f"step{self.served}/step_noise"]
        self.served += 1
        assert len(first) == self.batch * count
        return first, later[:, : len(first)]


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


@torch.no_grad()
def test_every_step(run: Run) -> None:
    stored, found = run.stored, {}
    before = torch.zeros_like(run.steps[0].tokens)
    masked = torch.ones(before.shape[:2])
    passes = run.notes.calls["hidden"][1:]
    for number, step in enumerate(run.steps):
        prefix = f"step{number}"
        _, given, _ = passes[number]
        visible = (masked == 0).nonzero()[:, 1].view(run.batch, -1)
        everywhere = run.drawing.conditions(before, visible)
        index = step.places.repeat(2, 1).unsqueeze(-1).expand(-1, -1, everywhere.shape[-1])
        torch.testing.assert_close(everywhere.gather(1, index), step.conditions)
        found |= {
            f"{prefix}/tokens_in": before.unflatten(1, run.model.config.grid).repeat(2, 1, 1, 1),
            f"{prefix}/mask_in": masked.repeat(2, 1),
            f"{prefix}/x_enc_out": run.notes.calls["encoded"][number][2],
            f"{prefix}/z_dec": everywhere,
            f"{prefix}/z_selected": step.conditions.flatten(0, 1),
            f"{prefix}/position_ids": given["positions"],
            f"{prefix}/llm_attention_mask": given["mask"],
        }
        # the unconditional half's latents are drawn too, but never used
        if f"{prefix}/sampled" in stored:
            half = len(stored[f"{prefix}/sampled"]) // 2
            drawn = step.drawn.flatten(0, 1)
            found[f"{prefix}/sampled"] = torch.cat([drawn, stored[f"{prefix}/sampled"][half:]])
        before, masked = step.tokens, masked.scatter(1, step.places, 0.0)
    found["final_tokens"] = before.unflatten(1, run.model.config.grid).repeat(2, 1, 1, 1)
    found["image"] = run.model.frozen.decode(found["final_tokens"][: run.batch])
    noises = [name for name in stored if name.endswith("_noise")]
    prefill = [name for name in stored if name.startswith("prefill_")]
    golden.assert_reproduces(stored, found, {*INPUTS, *noises, *prefill})
    assert run.served == len(run.steps) == run.described["num_iter"]


def test_guidance_of_every_step(run: Run) -> None:
    expected = run.described.get("cfg_per_step", [run.described["cfg"]] * len(run.steps))
    assert [step.guidance for step in run.steps] == pytest.approx(expected)


def test_prefill(run: Run) -> None:
    """Each distinct prompt passes the language model once; rows at padding are not looked at."""
    (_, embeddings), _, hidden = run.notes.calls["hidden"][0]
    rows = _rows_of(run)
    assert len(embeddings) == rows.max() + 1 <= 2 * run.batch
    shown = run.drawing.mask.bool()
    for name, ours in (("prefill_last_hidden", hidden), ("prefill_inputs_embeds", embeddings)):
        if name in run.stored:
            golden.assert_same(name, ours[rows][shown], run.stored[name][shown])


def _rows_of(run: Run) -> Tensor:
    """Which of the distinct prompts each row of the case has."""
    found, start = [], 0
    for half in conditions_of(run.stored, run.model):
        texts, index = sampler.distinct(half)
        found += [start + at for at in index]
        start += len(texts)
    return torch.tensor(found)


def test_the_schedule_of_the_released_size() -> None:
    """harmon.md d4: 512 pixels and 64 steps start 1023, 1022, 1021, 1019 and end 50, 25."""
    masked, kept = 1024, []
    for step in range(64):
        masked = sampler.kept_masked(step, 64, 1024, masked)
        kept.append(masked)
    assert kept[:4] == [1023, 1022, 1021, 1019] and kept[-3:-1] == [50, 25]
