"""The transcription of Show-o's published loop gives the published numbers: golden losses, gradients, masks, codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from perf import pairs, showo_direct, showo_sampler, showo_step, steps
from perf.showo_direct import Drawn, Encoded, Given
from reca.models.common import packing
from reca.models.registry import build_model
from tests.reference import golden_cases as golden
from tests.reference.test_showo_losses import Case, built
from tests.reference.test_showo_sampler import model_of

TOTALS = [case for case in golden.listed("showo") if case.startswith("total_clip")]
SAMPLED = [case for case in golden.listed("showo") if case.startswith("sample_t2i")]
RESULT = Path(__file__).parents[2] / "docs/results/showo_step.json"


def golden_inputs(case: Case) -> tuple[Given, Encoded]:
    """A stored micro-batch; the images of its conversations are stored as their CLIP states."""
    talk, noise, other = case.conversation(), case.sample_noise("recon"), case.sample_noise("t2i")
    given = Given(
        drawn=case.pixels("recon"),
        read=torch.empty(0),
        other=case.pixels("t2i"),
        prompts=case.recon_prompts(),
        conversations=talk.ids,
        labels=talk.labels,
        captions=case.condition("t2i").texts,
        system=talk.system,
        t=noise.t,
        u=noise.u,
        other_t=other.t,
        other_u=other.u,
        dropout=other.text_dropout,
    )
    frozen, side = case.model.frozen, case.config.tower.image_size
    found = Encoded(
        showo_direct.codes(frozen, given.drawn),
        showo_direct.codes(frozen, given.other),
        showo_direct.clip_states(frozen.clip, showo_direct.clip_condition(given.drawn, side)),
        case.understanding("mmu"),
    )
    return given, found


@pytest.mark.parametrize("name", TOTALS)
def test_the_published_losses_and_gradients(name: str) -> None:
    case = built(name)
    network, described = case.model.network, case.described
    given, found = golden_inputs(case)
    golden.assert_same("features", found.condition, case.stored["recon.clip_features"])
    losses = showo_direct.losses(network, given, found, described["max_seq_length"])
    for task, stored in (("reca", "recon"), ("i2t", "mmu"), ("t2i", "t2i")):
        golden.assert_number(task, losses[task].item(), described[f"loss_{stored}"])
    network.zero_grad(set_to_none=True)
    showo_direct.total(losses).backward()
    golden.assert_gradients(described, dict(network.named_parameters()))


@pytest.mark.parametrize("name", TOTALS)
def test_the_published_masks(name: str) -> None:
    case = built(name)
    special, slots = case.config.ids, case.config.num_vq_tokens
    reca, t2i = case.layout("recon").ids, case.layout("t2i").ids
    found = {
        "recon.attn_allowed": showo_direct.reconstruction_mask(reca, slots, special),
        "main.attn_allowed": torch.cat(
            [
                showo_direct.text_to_image_mask(t2i, special),
                showo_direct.conversation_mask(case.layout("mmu").ids),
            ]
        ),
    }
    for mask, mine in found.items():
        stored = case.stored[f"{mask}_packed"]
        assert torch.equal(mine, golden.unpack_mask(stored, mine.shape[-1])), mask


@pytest.mark.parametrize("name", SAMPLED)
def test_the_published_sampler(name: str) -> None:
    described, stored = golden.load("showo", name)
    model = model_of(described, max_text=described["max_seq_length"])
    ids = model.config.ids
    prompts = [[ids.bos, *prompt, ids.eos] for prompt in described["prompts"]]
    guidance, steps = described["guidance_scale"], described["timesteps"]
    loop = showo_direct.Sampler(model.network, prompts, steps, guidance)
    noise = zip(stored["step.exp_noise"], stored["step.gumbel_uniform"], strict=True)
    codes = loop(Drawn(*one) for one in noise)
    assert torch.equal(codes, stored["output_codes"])


def test_both_sides_of_the_step_give_the_same() -> None:
    torch.manual_seed(0)
    section = showo_step.scaled(128, 6)
    model = build_model("showo", section)
    sample = showo_step.Sample(model, 1 / 16)
    loss, gradient = steps.compared(sample)
    assert loss < 1e-5 and gradient < 1e-5
    assert sample.kept_bytes(steps.OURS) < sample.kept_bytes(steps.DIRECT)


@pytest.mark.parametrize("least", [0, packing.LEAST])
def test_both_sides_of_the_sampler_give_the_same_codes(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With packed layers, and with plain ones."""
    monkeypatch.setattr(packing, "LEAST", least)
    sides = showo_sampler.Sides(showo_sampler.build(128, 6), prompts=2, steps=4)
    assert torch.equal(sides.ours(), sides.direct())


def test_a_wrong_gradient_is_seen() -> None:
    grads = {"a": torch.ones(4), "b": torch.ones(4)}
    assert pairs.gradient_difference(grads, grads) == 0
    assert pairs.gradient_difference({"a": torch.ones(4)}, grads) == pytest.approx(0.5**0.5)


def test_the_recorded_step_compares_equal_gradients() -> None:
    found = json.loads(RESULT.read_text())
    assert found["relative_gradient_difference"] < 1e-5
    assert found["straightforward_over_ours"]["from_cache"] >= 1.8
