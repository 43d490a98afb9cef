"""Janus-Pro's losses against the official modules: states, logits, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reca.models.contract import Loss
from reca.models.janus import layout as layouts
from reca.models.janus import loss as losses
from reca.models.janus.batch import Condition, Conversation, DropoutNoise
from reca.models.janus.layout import IMAGE
from tests.reference import golden_cases as golden
from tests.reference.janus_model import GRADIENTS, VALUES, labels_of, model_of, rows_of

CASES = golden.cases("janus", __file__)
INPUTS = ("pixel_values", "target_pixels", "input_ids", "attention_mask", "labels")


class Case:
    """One golden case: its model, its rows, and what the loss and its backward pass gave."""

    def __init__(self, name: str) -> None:
        self.described, self.stored = golden.load("janus", name)
        self.model = model_of(self.described)
        self.length = self.model.config.image_length
        ids, mask = self.stored["input_ids"], self.stored["attention_mask"]
        self.rows = rows_of(self.described, ids, mask, self.length)
        self.read = self._read()
        self.found: dict[str, Tensor] = {}
        self.loss = self._answered() if "labels" in self.stored else self._generated()
        self.found["loss"] = self.loss.mean
        self.loss.mean.backward()

    def _read(self) -> Tensor | None:
        if "understanding_embeds" not in self.stored:
            return None
        with torch.no_grad():
            return self.model.frozen.features(self.stored["pixel_values"])

    def _generated(self) -> Loss:
        """RecA or text-to-image; nothing is dropped but what the case itself drops."""
        model, stored = self.model, self.stored
        pixels = stored["target_pixels" if "target_pixels" in stored else "pixel_values"]
        with torch.no_grad():
            codes = model.frozen.codes(pixels)
        condition = Condition(self.rows, self.described["config"]["pad"], self._seen())
        noise = DropoutNoise(torch.ones(len(self.rows)), codes.shape[1])
        states = losses.code_states(model.network, model.options, codes, condition, noise)
        self.found |= {"codes": codes, "query_hidden": states.detach()}
        self.found["logits"] = model.network.code_logits(states).detach()
        self._understood()
        return model.generation_loss({"target": codes}, condition, noise)

    def _answered(self) -> Loss:
        model, stored = self.model, self.stored
        labels = [
            labels_of(self.described, row, own[mask.bool()], self.length)
            for row, own, mask in zip(
                self.rows, stored["labels"], stored["attention_mask"], strict=True
            )
        ]
        ids, _ = layouts.conversation(self.rows, labels, self.length)
        hidden = model.network.hidden(model.network.inputs(ids, self._seen()))
        logits = model.network.language_model.lm_head(hidden).detach()
        shown = stored["logits_last"].shape[1]
        ends = [len(layouts.expanded(row, self.length)) for row in self.rows]
        self.found["logits_last"] = torch.stack(
            [row[end - shown : end] for row, end in zip(logits, ends, strict=True)]
        )
        self._understood()
        seen = self._seen()
        features = None if seen is None else {"understanding": seen}
        return model.answer_loss(Conversation(self.rows, labels), features)

    def _seen(self) -> Tensor | None:
        """SigLIP features of the rows that have an image: a case may have dropped some."""
        kept = [number for number, row in enumerate(self.rows) if IMAGE in row]
        return None if self.read is None else self.read[kept]

    def _understood(self) -> None:
        if self.read is not None:
            self.found["understanding_embeds"] = self.model.network.aligner(self.read).detach()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_every_value_is_reproduced(case: Case) -> None:
    stored = {name: tensor for name, tensor in case.stored.items() if not name.startswith("grad")}
    golden.assert_reproduces(stored, case.found, INPUTS, VALUES)


def test_gradients_are_reproduced(case: Case) -> None:
    """Over all but the frozen parts; what has no gradient counts as zero."""
    trained = {n: p for n, p in case.model.named_parameters() if n.startswith("network.")}
    assert set(case.model.trainable_parameters()) == set(trained)
    gradients = [p.grad for p in trained.values() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    golden.assert_same("grad_norm", norm, case.stored["grad_norm"], GRADIENTS)
    official = {o: n for n, o in case.model.weight_files()[0].naming.official(case.model).items()}
    stored = {n.removeprefix("grad::"): t for n, t in case.stored.items() if n.startswith("grad::")}
    for name, expected in stored.items():
        found: Any = trained[official[name]].grad
        golden.assert_same(name, found, expected, GRADIENTS)
    frozen = [p for n, p in case.model.named_parameters() if n.startswith("frozen.")]
    assert not any(p.requires_grad for p in frozen)


def test_a_dropped_condition_is_the_stored_one(case: Case) -> None:
    """Rows whose condition the case dropped are ours of any row of their length (janus.md g9)."""
    ids = case.described["config"]
    for row in case.rows:
        if set(row[1:-1]) == {ids["pad"]}:
            other = [ids["bos"], *range(len(row) - 2), ids["boi"]]
            assert layouts.without_condition(other, ids["pad"], case.length) == row
