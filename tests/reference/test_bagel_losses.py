"""BAGEL's four training losses against the official packed forward: layout, masks, every state, gradients."""

from __future__ import annotations

import os
from functools import lru_cache
from math import prod
from typing import Any

import pytest
import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor
from torch.nn import functional as F

from reca.models.bagel.config import BagelOptions
from reca.models.bagel.context import (
    Block,
    clean_block,
    empty,
    extend,
    picture_block,
    text_block,
    velocity,
)
from reca.models.bagel.layout import Split, pack
from reca.models.bagel.loss import Noised, flow_time, prefixed_loss, velocity_loss
from reca.models.bagel.network import Pair
from reca.models.bagel.packed import (
    PackInputs,
    PackStates,
    pack_embeddings,
    run_pack,
    target_places,
)
from reca.models.bagel.vision import patchify, unpatchify
from tests.reference import bagel_cases as bagel
from tests.reference import golden_cases as golden

CASES = golden.cases("bagel", __file__)
# Of losses and attention; tests/kernels runs this file once more with triton, in the interpreter.
IMPLEMENTATION = os.environ.get("RECA_TEST_IMPLEMENTATION", "torch")
FROZEN = [c for c in CASES if c.startswith("reca") and golden.load("bagel", c)[0]["freeze_und"]]
LAYOUT = {
    "packed_text_ids": "text_ids",
    "packed_text_indexes": "text_at",
    "packed_position_ids": "positions",
    "packed_vit_position_ids": "vit_ids",
    "packed_vit_token_indexes": "vit_at",
    "packed_latent_position_ids": "latent_ids",
    "packed_vae_token_indexes": "latent_at",
    "mse_loss_indexes": "mse_at",
    "ce_loss_indexes": "ce_at",
    "packed_label_ids": "labels",
    "ce_loss_weights": "label_weights",
}


class Case:
    """One golden case: its model, its pack, and one forward pass through both."""

    def __init__(self, name: str) -> None:
        self.described, self.stored = golden.load("bagel", name)
        self.model = bagel.model_of(self.described)
        self.network, self.config = self.model.network, self.model.config
        self.frozen = self.described["freeze_und"]
        self.packed = pack(
            [self.splits(sample) for sample in self.described["samples"]],
            self.config.special,
            self.config.vit_max_num_patch_per_side,
            self.config.max_latent_size,
        )

    # ---- what goes in ----------------------------------------------------------------------------
    def splits(self, sample: dict[str, Any]) -> list[Split]:
        """RecA [vit][text][vae], captions [text][vae], answers [vit][q][a], edits [vae][vit][text][vae]."""
        found: list[Split] = []
        if "src_vae" in sample:
            found.append(Split("vae", grid=self.latent_grid(sample["src_vae"])))
        for key in ("src_vit", "vit"):
            if key in sample:
                found.append(Split("vit", grid=self.vit_grid(sample[key])))
        if "a" in sample:  # in the order of the json: the assistant may begin
            turns = [(key, tuple(ids)) for key, ids in sample.items() if key in ("q", "a")]
            return [*found, *(Split("text", ids, target=key == "a") for key, ids in turns)]
        dropped = bool(sample.get("drop", False))
        found.append(Split("text", tuple(sample["text"]), dropped=dropped))
        return [*found, Split("vae", grid=self.latent_grid(sample["vae"]), target=True)]

    def latent_grid(self, size: list[int]) -> tuple[int, int]:
        return size[0] // self.config.stride, size[1] // self.config.stride

    def vit_grid(self, size: list[int]) -> tuple[int, int]:
        patch = self.config.vit.patch_size
        return size[0] // patch, size[1] // patch

    def vit_pixels(self) -> list[Tensor]:
        """Patches back to pictures, so that the tower patchifies them itself."""
        from reca.models.bagel.vision import unpatchify

        sizes = [s.get("vit") or s.get("src_vit") for s in self.described["samples"]]
        grids = [self.vit_grid(size) for size in sizes if size]
        rows = self.stored["packed_vit_tokens"].split([h * w for h, w in grids])
        patch = self.config.vit.patch_size
        return [unpatchify(row, grid, patch) for row, grid in zip(rows, grids, strict=True)]

    @lru_cache  # noqa: B019
    def vit(self) -> Tensor:
        if not len(self.packed.vit_at):
            return torch.zeros(0, self.config.vit.hidden_size)
        return bagel.vit_states(self.model, self.vit_pixels())

    @lru_cache  # noqa: B019
    def clean(self) -> Tensor:
        """Latent tokens [S, C] of all pictures, through our own VAE."""
        moments = self.model.frozen.moments(self.stored["padded_images"])
        latent = self.model.frozen.latents(moments, self.stored["vae_posterior_noise"])
        golden.assert_same("padded_latent", latent, self.stored["padded_latent"])
        grids = [tuple(grid) for grid in self.stored["latent_shapes"].tolist()]
        return bagel.cropped_tokens(latent, grids, self.config.latent_patch_size)

    def times(self) -> Tensor:
        return flow_time(self.stored["packed_timesteps"], self.described["timestep_shift"])

    def inputs(self) -> PackInputs:
        if not len(self.packed.latent_at):
            return PackInputs(self.vit(), torch.zeros(0, self.config.latent_width), torch.zeros(0))
        t = self.times()
        mix = t.unsqueeze(1)
        return PackInputs(self.vit(), (1 - mix) * self.clean() + mix * self.stored["noise"], t)

    # ---- what comes out --------------------------------------------------------------------------
    def run(self, collect: list[Pair] | None = None) -> PackStates:
        return run_pack(
            self.network,
            self.packed,
            self.inputs(),
            frozen=self.frozen,
            collect=collect,
            implementation=IMPLEMENTATION,
        )

    def in_order(self, states: PackStates | Pair) -> Tensor:
        """States by place in the pack."""
        is_pair = isinstance(states, Pair)
        parts = [states.und, states.gen] if is_pair else [states.text, states.vit, states.latent]
        at = torch.cat([self.packed.text_at, self.packed.vit_at, self.packed.latent_at])
        tokens = torch.cat(parts)
        return torch.empty_like(tokens).index_copy(0, at, tokens)

    def velocity(self, states: PackStates) -> Tensor:
        return self.network.llm2vae(states.latent[target_places(self.packed)])

    def wanted_velocity(self) -> Tensor:
        places = target_places(self.packed)
        return (self.stored["noise"] - self.clean())[places]

    def cross_entropies(self, states: PackStates) -> Tensor:
        at = torch.searchsorted(self.packed.text_at, self.packed.ce_at)
        return F.cross_entropy(
            self.network.logits(states.text[at]), self.packed.labels, reduction="none"
        )

    def loss(self, states: PackStates) -> Tensor:
        if len(self.packed.ce_at):
            at = torch.searchsorted(self.packed.text_at, self.packed.ce_at)
            head = self.network.language_model.lm_head.weight
            wanted = self.packed.labels
            return linear_cross_entropy(
                states.text[at], head, wanted, implementation=IMPLEMENTATION
            )
        places = target_places(self.packed)
        data = Noised(*[torch.zeros(0)] * 2, self.clean()[places], self.stored["noise"][places])
        total = velocity_loss(self.network, states.latent[places], data, IMPLEMENTATION)
        return total / len(places)


@lru_cache(maxsize=4)
def case_of(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return case_of(request.param)


# ---- layout ------------------------------------------------------------------------------------
def test_the_pack_is_laid_out_as_stored(case):
    checked = 0
    for stored, ours in LAYOUT.items():
        if stored in case.stored:
            golden.assert_same(stored, getattr(case.packed, ours), case.stored[stored])
            checked += 1
    assert checked >= 5
    assert list(case.packed.sample_lengths) == case.stored["sample_lens"].tolist()
    assert list(case.packed.split_lengths) == case.stored["split_lens"].tolist()
    assert list(case.packed.split_modes) == case.stored["attn_mode_codes"].tolist()


def test_masks_are_the_stored_ones(case):
    allowed = case.packed.layout().dense()
    masks = [name for name in case.stored if name.startswith("attention_mask_")]
    assert len(masks) == len(case.packed.sample_lengths)
    expected = torch.block_diag(
        *[case.stored[f"attention_mask_{i}"].int() for i in range(len(masks))]
    )
    golden.assert_same("mask", allowed, expected.bool())


# ---- states ------------------------------------------------------------------------------------
def test_understanding_embeddings(case):
    if not len(case.packed.vit_at):
        assert "vit_hidden" not in case.stored
        return
    patch = case.config.vit.patch_size
    patches = torch.cat([patchify(one, patch) for one in case.vit_pixels()])
    golden.assert_same("patches", patches, case.stored["packed_vit_tokens"])
    golden.assert_same("vit_hidden", case.vit(), case.stored["vit_hidden"])
    golden.assert_same(
        "connector", case.network.connector(case.vit()), case.stored["connector_out"]
    )
    read = case.network.read(case.vit(), case.packed.vit_ids)
    golden.assert_same("und_embeddings", read, case.stored["und_embeddings"])


def test_inputs_and_states_of_every_layer(case):
    with torch.no_grad():
        inputs = case.inputs()
        embedded = pack_embeddings(case.network, case.packed, inputs, case.frozen)
        golden.assert_same("llm_input", case.in_order(embedded), case.stored["llm_input"])
        if "t" in case.stored:
            golden.assert_same("t", inputs.times, case.stored["t"])
            time = case.network.time_embedder(inputs.times)
            golden.assert_same("time", time, case.stored["timestep_embeds"])
        collected: list[Pair] = []
        states = case.run(collected)
    for layer, pair in enumerate(collected):
        name = f"hidden_after_layer{layer}"
        golden.assert_same(name, case.in_order(pair), case.stored[name])
    golden.assert_same("final", case.in_order(states), case.stored["final_hidden"])


# ---- losses and gradients ----------------------------------------------------------------------
def test_loss(case):
    with torch.no_grad():
        states = case.run()
        golden.assert_number("loss", case.loss(states).item(), case.described["loss"])
        golden.assert_same("loss", case.loss(states), case.stored["loss"])
        if "velocity_pred" in case.stored:
            golden.assert_same("velocity", case.velocity(states), case.stored["velocity_pred"])
            squares = (case.velocity(states) - case.wanted_velocity()).square()
            golden.assert_same("mse", squares, case.stored["mse_per_element"])
            golden.assert_same("loss_mse", squares.mean(-1).mean(), case.stored["loss_mse"])
        else:
            found = case.cross_entropies(states)
            golden.assert_same("ce", found, case.stored["ce_per_token"])
            golden.assert_same("loss_ce", found.mean(), case.stored["loss_ce"])
            weights = case.packed.label_weights
            # bagel.md 3: the weighted sum over the sum of weights
            again = (found * weights).sum() / weights.sum()
            golden.assert_same("reweighted", again, case.stored["loss_ce_reweighted"])
            at = torch.searchsorted(case.packed.text_at, case.packed.ce_at)
            golden.assert_same(
                "logits", case.network.logits(states.text[at]), case.stored["logits"]
            )


def test_gradients(case):
    check_gradients(case, lambda: case.loss(case.run()))


def check_gradients(case: Case, loss) -> None:
    case.network.zero_grad(set_to_none=True)
    case.vit.cache_clear()
    loss().backward()
    case.vit.cache_clear()
    found = {n: p.grad for n, p in case.network.named_parameters() if p.grad is not None}
    nonzero = {name for name, grad in found.items() if bool((grad != 0).any())}
    assert nonzero == set(case.described["parameters_with_nonzero_gradient"])
    norm = torch.stack([grad.norm() for grad in found.values()]).norm()
    golden.assert_number("grad_norm", float(norm), case.described["grad_norm"])
    golden.assert_same("grad_norm", norm, case.stored["grad_norm"])
    stored = {n.removeprefix("grad."): t for n, t in case.stored.items() if n.startswith("grad.")}
    assert stored
    for name, gradient in stored.items():
        golden.assert_same(name, found[name], gradient)


# ---- two phases --------------------------------------------------------------------------------
def two_phase_loss(case: Case) -> Tensor:
    """RecA's samples one by one: prefix without gradient, then the noise block; the mean over all tokens."""
    inputs, total, count, at, vit_at = case.inputs(), torch.zeros(()), 0, 0, 0
    for sample in case.described["samples"]:
        grid, latent = case.vit_grid(sample["vit"]), case.latent_grid(sample["vae"])
        patches, tokens = grid[0] * grid[1], latent[0] * latent[1]
        blocks: list[Block] = []
        with torch.no_grad():
            ids = case.packed.vit_ids[vit_at : vit_at + patches]
            read = case.network.read(case.vit()[vit_at : vit_at + patches], ids)
            blocks.append(picture_block(case.network, read.unsqueeze(0)))
            if not sample.get("drop"):
                blocks.append(text_block(case.network, [sample["text"]]))
            context = extend(case.network, empty(case.network, 1), blocks, frozen=True)
        here = slice(at, at + tokens)
        t, x = inputs.times[at : at + 1], inputs.latents[here].unsqueeze(0)
        v = velocity(case.network, context, x, t, case.packed.latent_ids[here])[0]
        wanted = (case.stored["noise"] - case.clean())[here]
        total = total + (v - wanted).square().mean(-1).sum()
        count, at, vit_at = count + tokens, at + tokens, vit_at + patches
    return total / count


@pytest.mark.parametrize("name", FROZEN)
def test_two_phases_give_the_packed_loss_and_gradients(name):
    case = case_of(name)
    golden.assert_number("loss", two_phase_loss(case).item(), case.described["loss"])
    check_gradients(case, lambda: two_phase_loss(case))


@pytest.mark.parametrize("name", FROZEN)
def test_the_detach_rule_is_needed(name):
    """Freezing und weights by requires_grad alone lets gradient through the two markers (bagel.md 5, the trap)."""
    case = case_of(name)
    und = set(case.described["parameters_with_nonzero_gradient"])
    case.network.zero_grad(set_to_none=True)
    states = run_pack(case.network, case.packed, case.inputs(), frozen=False)
    case.loss(states).backward()
    found = {n: p.grad for n, p in case.network.named_parameters() if n in und}
    norm = torch.stack([grad.norm() for grad in found.values()]).norm()
    assert abs(float(norm) / case.described["grad_norm"] - 1) > 1e-4
    # and the loss is the same: only the backward pass differs
    golden.assert_number("loss", case.loss(states).item(), case.described["loss"])


def test_cases_cover_all_four_losses():
    named = {name.split("_")[0] for name in CASES}
    assert named == {"reca", "t2i", "i2t", "edit"} or golden.root() != golden.COPY
    assert BagelOptions().freeze_und


# ---- edits, in batches -------------------------------------------------------------------------
def edit_loss(case: Case) -> Tensor:
    """The edit samples one by one through the blocks of `reca.models.bagel.loss`; the mean over target tokens."""
    inputs, total, count = case.inputs(), torch.zeros(()), 0
    latent_at = vit_at = 0
    for sample in case.described["samples"]:
        source, target = case.latent_grid(sample["src_vae"]), case.latent_grid(sample["vae"])
        middle = latent_at + source[0] * source[1]
        end, vit_end = (
            middle + target[0] * target[1],
            vit_at + prod(case.vit_grid(sample["src_vit"])),
        )
        clean = unpatchify(
            case.clean()[latent_at:middle].unsqueeze(0), source, case.config.latent_patch_size
        )
        read = case.network.read(case.vit()[vit_at:vit_end], case.packed.vit_ids[vit_at:vit_end])
        blocks = [
            clean_block(case.network, clean),
            picture_block(case.network, read.unsqueeze(0)),
            text_block(case.network, [None if sample.get("drop") else sample["text"]]),
        ]
        row = (inputs.latents, inputs.times, case.clean(), case.stored["noise"])
        x, t, wanted, noise = (part[middle:end].unsqueeze(0) for part in row)
        point = Noised(x, t[:, 0], wanted, noise)
        ids = case.packed.latent_ids[middle:end]
        total = total + prefixed_loss(
            case.network, blocks, point, ids, frozen=case.frozen, learns=True
        )
        count, latent_at, vit_at = count + end - middle, end, vit_end
    return total / count


@pytest.mark.parametrize("name", [c for c in CASES if c.startswith("edit")])
def test_blocks_give_the_packed_edit_loss_and_gradients(name):
    """The prefix of an edit holds trained tokens, so it is run with gradient; und tokens may be trained, too."""
    case = case_of(name)
    golden.assert_number("loss", edit_loss(case).item(), case.described["loss"])
    check_gradients(case, lambda: edit_loss(case))
