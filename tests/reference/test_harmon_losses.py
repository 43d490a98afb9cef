"""Harmon's three losses against the official training module: every intermediate, loss and gradient."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from reca.models.contract import Loss
from reca.models.harmon import layout as layouts
from reca.models.harmon.layout import IGNORE
from reca.models.harmon.model import Condition, Conversation, DiffusionNoise, HarmonModel
from tests.reference import golden_cases as golden
from tests.reference.harmon_model import VB, Notebook, model_of, rows_of

CASES = golden.cases("harmon", __file__)
INPUTS = ("pixel_values", "input_ids", "attention_mask", "latents", "labels")


class Case:
    """One golden case: its model, what goes in, and all that came out on the way to the loss."""

    def __init__(self, name: str) -> None:
        self.described, self.stored = golden.load("harmon", name)
        self.kind = self.described["kind"]
        self.model = model_of(self.described, with_vae="pixel_values" in self.stored)
        self.notes = Notebook()
        network = self.model.network
        for owner, method in ((network, "hidden"), (network, "with_context"), (network, "to_llm")):
            self.notes.watch(owner, method)
        self.notes.watch(network.mar, "encode").watch(network.mar, "decode")
        self.loss = self._loss()

    def sample_noise(self) -> DiffusionNoise:
        stored = self.stored
        orders = stored["draw/orders"]
        masked = layouts.masked_count(orders.shape[1], stored["draw/mask_rate"].item())
        kept = torch.ones(len(orders))
        return DiffusionNoise(orders, masked, stored["draw/t"], stored["draw/noise"], kept)

    def _loss(self) -> Loss:
        stored = self.stored
        rows = rows_of(stored["input_ids"], stored["attention_mask"])
        if self.kind == "i2t":
            labels = rows_of(stored["labels"], stored["attention_mask"])
            conversation = Conversation(rows, labels)
            loss = self.model.answer_loss(conversation, {"latents": stored["latents"]})
            assert loss.count == conversation.count
            return loss
        latents = stored["latents"]
        condition = Condition(rows, latents=latents if self.kind == "recon" else None)
        noise = self.sample_noise()
        loss = self.model.generation_loss({"target": latents}, condition, noise)
        assert loss.count == noise.count
        return loss

    def found(self) -> dict[str, Tensor]:
        """All that the case stores but gradients, under the stored names."""
        (args, given, hidden), *none = self.notes.calls["hidden"]
        assert not none, "one pass of the language model"
        found = {
            "llm/inputs_embeds": args[0],
            "llm/attention_mask": given["mask"],
            "llm/last_hidden": hidden,
            "loss": self.loss.mean.reshape(1),
        }
        if given.get("positions") is not None:
            found["llm/position_ids"] = given["positions"]
        whole = [r for a, k, r in self.notes.calls["encode"] if len(a) < 3 or a[2] is None]
        masked = [r for a, k, r in self.notes.calls["encode"] if len(a) > 2 and a[2] is not None]
        for name, passes in (("und/x_enc", whole), ("gen/x_enc_masked", masked)):
            if passes:
                found[name] = passes[0]
                found[name.replace("x_enc", "z_enc")] = self._handed_on(passes[0])
        return found | (self._answered() if self.kind == "i2t" else self._drawn())

    def _handed_on(self, encoded: Tensor) -> Tensor:
        return next(r for a, k, r in self.notes.calls["to_llm"] if a[0] is encoded)

    def _answered(self) -> dict[str, Tensor]:
        """The targets, and the logits at them, which the loss does not keep."""
        length = self.model.config.image_length
        targets = layouts.shifted_labels(self.stored["labels"], length)
        hidden = self.notes.calls["hidden"][0][2][:, :-1]
        return {
            "labels_expanded": targets,
            "logits_at_labels": self.model.network.llm.lm_head(hidden[targets != IGNORE]),
        }

    def _drawn(self) -> dict[str, Tensor]:
        """z, and the loss of every row, masked or not, which training does not compute."""
        noise = self.sample_noise()
        z = self.notes.calls["decode"][0][2]
        latents = self.stored["latents"].flatten(0, 2)
        repeats = len(noise.t) // len(latents)
        with torch.no_grad():
            mse, vb = self.model.network.mar.diffloss.losses(
                latents.repeat(repeats, 1),
                z.flatten(0, 1).repeat(repeats, 1),
                noise.t,
                noise.gaussian,
            )
        hidden, _ = layouts.places(noise.orders, noise.masked)
        mask = torch.zeros(noise.orders.shape).scatter(1, hidden, 1.0)
        return {
            "gen/x_enc_out": self.notes.calls["with_context"][0][2],
            "gen/z_dec": z,
            "loss/mse": mse,
            "loss/vb": vb,
            "loss/per_token": mse + vb,
            "draw/mask": mask,
        }


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_every_stored_tensor_is_reproduced(case: Case) -> None:
    found = case.found()
    shown = case.stored["llm/attention_mask"].bool()
    compared = []
    for name, stored in case.stored.items():
        drawn = name.startswith("draw/") and name != "draw/mask"
        if drawn or name.startswith("grad/") or name in INPUTS:
            continue
        ours, part = found[re.sub(r"_every\d+$", "", name)], shown
        if strided := re.search(r"_every(\d+)$", name):
            step = int(strided.group(1))
            ours, part = ours[:, ::step], shown[:, ::step]
        if name.startswith("llm/last_hidden"):  # rows at padding are meaningless
            ours, stored = ours[part], stored[part]
        golden.assert_same(name, ours, stored, VB if name == "loss/vb" else golden.RELATIVE)
        compared.append(name)
    assert len(compared) > 4


def test_latents_are_the_vaes(case: Case) -> None:
    if "pixel_values" not in case.stored:
        assert "len1088" in case.described["case"], "only the long case stores no picture"
        return
    latents = case.model.frozen.latents(case.stored["pixel_values"])
    golden.assert_same("latents", latents, case.stored["latents"])


def test_loss_and_gradients(case: Case) -> None:
    golden.assert_number("loss", case.loss.mean.item(), case.described["loss"])
    case.model.zero_grad(set_to_none=True)
    case.loss.mean.backward(retain_graph=True)
    parameters = dict(case.model.network.named_parameters())
    missing = {name for name, p in parameters.items() if p.grad is None}
    assert missing == set(case.described["params_without_grad"])
    for name, stored in case.stored.items():
        if name.startswith("grad/"):
            golden.assert_same(name, parameters[name.removeprefix("grad/")].grad, stored, VB)
    golden.assert_gradients(case.described, parameters, VB)
    norms = by_part(case.model)
    for part, norm in case.described["grad_norm_by_part"].items():
        golden.assert_number(part, norms[part], norm, VB)
    assert set(norms) == set(case.described["grad_norm_by_part"])


def by_part(model: HarmonModel) -> dict[str, float]:
    """Gradient norms of the parts that the case reports."""
    squares: dict[str, float] = {}
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None:
            part = part_of(name)
            squares[part] = squares.get(part, 0.0) + parameter.grad.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


def part_of(name: str) -> str:
    if name.startswith("mar.diffloss."):
        return "mar.diffloss"
    if name.startswith(("mar.decoder", "mar.mask_token", "mar.diffusion_pos")):
        return "mar.decoder"
    return "mar.encoder" if name.startswith("mar.") else name.split(".")[0]


def test_padding_and_its_ids_change_nothing(case: Case) -> None:
    """What stands in the padding is never seen."""
    model: Any = case.model
    kept = model.config
    try:
        object.__setattr__(model, "config", kept.__class__(**{**vars(kept), "end": 11}))
        again = case._loss()
    finally:
        object.__setattr__(model, "config", kept)
    assert abs(again.mean - case.loss.mean) <= 1e-6 * abs(case.loss.mean)


def test_labels_ignore_the_picture() -> None:
    rows = torch.tensor([[IGNORE, IGNORE, IGNORE, IGNORE, 5, 6]])
    assert layouts.shifted_labels(rows, 2).tolist() == [[IGNORE] * 4 + [5, 6]]
    assert layouts.shifted_labels(rows, 0).tolist() == [[IGNORE] * 3 + [5, 6]]
