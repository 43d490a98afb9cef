"""All golden cases of OpenUni: reading, losses with gradients (one pass and two), the sampler, schedules, pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reca.align.schedule import learning_rate
from reca.config import compose
from reca.models.common.pixels import square, to_pixels
from reca.models.openuni import layout
from reca.models.openuni.batch import Condition, Conversation, FlowNoise
from reca.models.openuni.encoders import vit_input
from reca.models.openuni.loss import answer_loss, generation_loss, noised, sigmas
from reca.models.openuni.network import drop_rates
from reca.models.openuni.sampler import FlowOptions, sample, solver
from tests.reference import golden_cases as golden
from tests.reference.openuni_cases import GRADIENT, VALUE, Case


def cases(pattern):
    return golden.cases("openuni", __file__, pattern)


# ---- losses ------------------------------------------------------------------------------------
LOSSES = [*cases("reca_loss*"), *cases("text2image_loss*")]


def conditions(case, two_phase):
    """States of the queries and what SANA attends to, of the stored prompts."""
    network, stored = case.network, case.stored
    ids, mask = stored["input_ids"], stored["attention_mask"]
    images = None
    if "pixel_values_src" in stored:
        side = case.described["config"]["vit_input_size"]
        images = network.read(vit_input(stored["pixel_values_src"], side)).detach()
    states = network.query_states(network.embed(ids, images), mask, two_phase)
    return states, network.conditions(states)


def latents(case):
    stored = case.stored
    if "pixel_values" not in stored:
        return stored["image_latents"]
    found = case.vae().latents(stored["pixel_values"])
    case.same("image_latents", found)
    return found


@pytest.mark.parametrize("two_phase", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name, two_phase):
    case = Case(name)
    network, stored = case.network, case.stored
    network.zero_grad(set_to_none=True)
    states, given = conditions(case, two_phase)
    case.same("query_hidden", states)
    case.same("prompt_embeds", given)
    point = noised(latents(case), stored["noise"], stored["u"])
    case.same("timesteps", point.t)
    case.same("noisy_latents", point.z)
    velocity = network.velocity(point.z, given, point.t)
    case.same("velocity", velocity)
    loss = F.mse_loss(velocity, point.velocity)
    case.same("loss", loss)
    loss.backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    norm = torch.stack([grad.norm() for grad in found.values()]).norm()
    case.same("grad_norm", norm)
    gradients = {n.removeprefix("grad::"): t for n, t in stored.items() if n.startswith("grad::")}
    assert gradients
    for parameter, wanted in gradients.items():
        golden.assert_same(parameter, found[parameter], wanted, GRADIENT)


@pytest.mark.parametrize("step", ["two_phase", "one_pass"])
@pytest.mark.parametrize("name", LOSSES)
@torch.no_grad()
def test_the_contracts_loss_batches_prompts_of_any_length(name, step):
    """From prompts without padding, in our own batch, the loss is the same."""
    case = Case(name)
    network, stored = case.network, case.stored
    masks = stored["attention_mask"].bool()
    texts = [ids[mask].tolist() for ids, mask in zip(stored["input_ids"], masks, strict=True)]
    kept = torch.ones(len(texts))
    sampled = FlowNoise(stored["u"], stored["noise"], kept)
    condition = Condition(texts, understanding=stored.get("understanding_embeds"))
    options = replace(case.options, step=step, max_prompt=10_000)
    loss = generation_loss(network, options, {"target": latents(case)}, condition, sampled)
    assert loss.count == sampled.count
    case.same("loss", loss.mean)


@pytest.mark.parametrize("name", LOSSES)
@torch.no_grad()
def test_positions_and_parts(name):
    case = Case(name)
    network, stored = case.network, case.stored
    whole = layout.with_queries(stored["attention_mask"], case.config.queries)
    real = whole.bool()
    places, wanted = layout.positions(whole), stored["llm_position_ids"]
    assert torch.equal(places[real], wanted[real])
    if "connector_out" in stored:
        states = network.connector(inputs_embeds=stored["query_hidden"]).last_hidden_state
        case.same("connector_out", states)
    if "llm_layer0_queries" in stored:
        kept = []
        hook = network.language.layers[0].register_forward_hook(lambda *a: kept.append(a[-1]))
        conditions(case, two_phase=True)
        hook.remove()
        state = kept[-1][0] if isinstance(kept[-1], tuple) else kept[-1]
        case.same("llm_layer0_queries", state)
    if "pixel_values_src" in stored:
        pixels = vit_input(stored["pixel_values_src"], case.config.vit.image_size)
        case.same("understanding_embeds", network.read(pixels))
        case.same("vit_last_hidden", network._vit(pixels, None))


# ---- reading -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", cases("image2text_loss*"))
@torch.no_grad()
def test_reading(name):
    case = Case(name)
    network, stored = case.network, case.stored
    images = network.read(stored["pixel_values"])
    case.same("understanding_embeds", images)
    ids = stored["input_ids"]
    mask = torch.ones_like(ids)
    states = network.hidden(network.embed(ids, images), mask, layout.positions(mask))
    logits = network.lmm.lm_head(states)
    for label in (n for n in stored if n.startswith("logits_last")):
        case.same(label, logits[:, -stored[label].shape[1] :])
    labels = stored["labels"][:, 1:].flatten()
    case.same("loss", F.cross_entropy(logits[:, :-1].flatten(0, 1), labels))
    conversation = Conversation(ids.tolist(), stored["labels"].tolist())
    case.same("loss", answer_loss(network, case.options, conversation, images).mean)


@pytest.mark.parametrize("name", cases("stochastic_depth*"))
@torch.no_grad()
def test_stochastic_depth(name):
    case = Case(name)
    rates = torch.tensor(drop_rates(case.config))
    torch.testing.assert_close(rates, torch.tensor(case.described["drop_rates_per_layer"]))
    pixels = case.stored["vit_input"]
    case.same("understanding_embeds_eval", case.network.read(pixels))
    case.same("understanding_embeds_train", case.network.read(pixels, case.stored["keep"]))


# ---- the sampler -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", cases("sampler*"))
@torch.no_grad()
def test_the_guided_solver(name):
    case = Case(name)
    stored = case.stored
    _, given = conditions(case, two_phase=True)
    case.same("prompt_embeds", given)
    with_text, without = given.chunk(2)
    options = FlowOptions(steps=case.described["num_steps"], guidance=case.described["cfg_scale"])
    run = solver(options)
    case.same("sigmas", run.sigmas)
    case.same("timesteps", run.timesteps)
    steps = list(sample(case.network, with_text, without, stored["initial_noise"], options))
    case.same("velocity_step0_both", steps[0].branches)
    # guidance and the solver multiply what rounding differs by
    case.same("guided_velocity", torch.stack([step.guided for step in steps]), 5 * VALUE)
    after = torch.stack([step.latents for step in steps])
    case.same("latents_after", after, 5 * VALUE)
    before = torch.cat([stored["initial_noise"].unsqueeze(0), after[:-1]])
    case.same("latents_before", before, 5 * VALUE)
    case.same("decoded_pixels", case.vae().decode(steps[-1].latents), 5 * VALUE)


@pytest.mark.parametrize(
    ("experiment", "accumulation", "iterations"),
    [("paper_openuni_b", 4, 10_000), ("paper_openuni_l", 16, 5_000)],
)
def test_the_learning_rate_counts_micro_iterations(experiment, accumulation, iterations):
    """openuni.md e: from 1e-5 to 1 over the first hundredth, then a cosine to 0; a step has the rate of its last."""
    (model,) = compose.load(experiment).models.values()
    warm = iterations // 100
    for step in (0, 1, 2, 24, 25, 100, model.align.steps - 1):
        last = (step + 1) * accumulation - 1
        if last < warm:
            factor = 1e-5 + (1 - 1e-5) * last / (warm - 1)
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (last - warm) / (iterations - warm)))
        assert learning_rate(model.align, step) == pytest.approx(1e-5 * factor, rel=1e-9)


@pytest.mark.parametrize("name", cases("schedules*"))
def test_schedules(name):
    _, stored = golden.load("openuni", name)
    for label in (n for n in stored if n.startswith("dpm") and n.endswith("_timesteps")):
        run = solver(FlowOptions(steps=len(stored[label])))
        golden.assert_same(label, run.timesteps, stored[label])
        other = label.replace("timesteps", "sigmas")
        golden.assert_same(other, run.sigmas, stored[other])
    golden.assert_same("train_sigmas", sigmas(), stored["train_sigmas"])
    golden.assert_same("train_timesteps", 1000 * sigmas(), stored["train_timesteps"])


# ---- pixels ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", cases("preprocess*"))
def test_preprocessing(name):
    _, stored = golden.load("openuni", name)
    image = Image.fromarray(stored["image_hwc"].numpy().astype(np.uint8))
    left, top, *_ = stored["crop_box"].tolist()
    cut = square(image, stored["pixel_values"].shape[-1], max(left, top))
    found = to_pixels(cut)
    golden.assert_same("pixel_values", found, stored["pixel_values"])
    wanted = stored["vit_input"]
    golden.assert_same("vit_input", vit_input(found.unsqueeze(0), wanted.shape[-1])[0], wanted)
