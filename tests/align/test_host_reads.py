"""No micro-batch waits for the device: the losses run, forward and backward, where no value can be read.

The model and its cached features lie on torch's `meta` device, which has shapes but no values, while texts, layouts
and noise lie on the host, as in training on a GPU. Whatever reads a value from the device (a count, the place of a
token, a mask that is looked at) raises there, and so does what comes back from the device. The kernels, which look
at their own layouts once per batch, are left out; losses are called with `all_valid`.

Copies to the device are held back: what they read must be the same when the step is over as when they were asked for.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reca.align import trainer
from reca.align.batches import EditRows, FeatureData, prepared_steps
from reca.align.distributed import ProcessGroup
from reca.align.objective import Objective
from reca.config.recipe import Recipe, TaskRecipe
from reca.models.common import batching
from reca.models.contract import ON_HOST
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny

META = torch.device("meta")
BATCH = 3
CASES = {
    "showo-clip": (showo_tiny, ("reca", "i2t", "t2i", "text"), {"understanding": "clip"}),
    "showo-vq": (showo_tiny, ("reca", "i2t", "t2i", "text"), {"understanding": "vq"}),
    "harmon": (harmon_tiny, ("reca", "i2t", "t2i", "text"), {}),
    "openuni": (openuni_tiny, ("reca", "t2i"), {}),  # its reader is frozen: no answers
    "openuni-noisy": (openuni_tiny, ("reca", "t2i"), {"stochastic_depth": True}),
    "openuni-one-pass": (openuni_tiny, ("reca", "t2i"), {"step": "one_pass"}),
    "janus": (janus_tiny, ("reca", "i2t", "t2i", "text"), {}),
    "bagel": (bagel_tiny, ("reca", "t2i", "edit"), {}),
    "bagel-answers": (bagel_tiny, ("i2t", "text"), {"freeze_und": False, "step": "packed"}),
    "bagel-packed": (bagel_tiny, ("reca", "t2i"), {"step": "packed"}),
}


def product(hidden, weight, *_, all_valid, **__):
    assert all_valid, "the loss would look for the rows without a target: choose them on the host"
    return (hidden @ weight.T).float().sum()


def squared(hidden, weight, *_, **__):
    return (hidden @ weight.T).float().sum()


def first(q, k, v, layout, **_):
    return q + k.mean() + v.mean()


KERNELS = {
    "showo.loss.linear_cross_entropy": product,
    "harmon.loss.linear_cross_entropy": product,
    "openuni.loss.linear_cross_entropy": product,
    "janus.loss.linear_cross_entropy": product,
    "bagel.loss.linear_cross_entropy": product,
    "bagel.loss.flow_matching_loss": squared,
    "showo.attention.block_attention": first,
    "bagel.attention.block_attention": first,
    "harmon.qwen2.block_attention": first,
}


class Rows:
    """Features of a few images, on the device."""

    def __init__(self, features) -> None:
        self.features = features

    def __len__(self) -> int:
        return BATCH

    def rows(self, indices):
        return {name: rows[list(indices)] for name, rows in self.features.items()}


class LateCopies(TorchDispatchMode):
    """A copy to the device must not wait for what the device is doing, and reads the host's bytes at some later time.

    On leaving, all that was to be copied must still have the values of that moment.
    """

    def __init__(self):
        super().__init__()
        self.copied = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = dict(kwargs or {})
        if function is torch.ops.aten._to_copy.default:
            target = torch.device(found.get("device") or args[0].device)
            if target == META != args[0].device:
                assert found.get("non_blocking"), "a copy to the device that waits: use `moved`"
                self.copied.append((args[0], args[0].clone()))
        return function(*args, **found)

    def __exit__(self, *error):
        super().__exit__(*error)
        for source, then in self.copied if error[0] is None else ():
            assert torch.equal(source, then), "overwritten while its copy was under way"


def test_a_buffer_that_is_used_again_is_caught():
    buffer = torch.zeros(4)
    with pytest.raises(AssertionError, match="under way"), LateCopies():
        batching.moved(buffer, META)
        buffer.numpy()[1] = 1.0  # past torch: no version counter sees it


def test_a_copy_to_the_host_waits(monkeypatch):
    """Without waiting the host would read memory that the device has not filled yet."""
    asked = {}
    on_device = torch.empty(2, device=META)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **options: asked.update(options))
    batching.moved(on_device, "cpu")
    assert asked["non_blocking"] is False


@pytest.mark.parametrize("family", [bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny])
def test_encoding_does_not_wait_for_the_device(family, tmp_path):
    model = family.model(tmp_path / "words").to(META)
    for use in ("draw", "read"):
        with LateCopies() as mode:
            found = model.encode(family.pictures(BATCH), use)
        assert mode.copied
        assert {rows.device for name, rows in found.items() if name not in ON_HOST} == {META}


@pytest.mark.parametrize("case", CASES)
def test_a_micro_batch_reads_nothing_from_the_device(case, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # `meta` has none
    for name, stand_in in KERNELS.items():
        monkeypatch.setattr(f"reca.models.{name}", stand_in)
    family, tasks, options = CASES[case]
    model = family.model(tmp_path / "words", **options)
    pictures = family.pictures(BATCH)
    talk = [[("what are the circles ?", "a red circle")], [("how many ?", "two")]]
    uses = {use: Rows(model.encode(pictures, use)) for use in ("draw", "read")}
    if "edit" in tasks:
        uses["edit"] = Rows(model.encode(pictures, "edit"))
        uses["edits"] = [
            EditRows(0, 1, "a red circle"),
            EditRows(1, 2, "blue"),
            EditRows(2, 0, "a"),
        ]
    data = FeatureData(
        prompts=["describe the image"],
        draw_captions=["a red circle", "blue", "a circle left of a square"],
        read_conversations=[talk] * BATCH,
        text_conversations=[talk] * BATCH,
        **uses,
    )
    recipe = Recipe(
        tasks={task: TaskRecipe(1.0, 2) for task in tasks},
        shuffle_condition=case == "harmon",
        precision="fp32",
    )
    # rows are pinned for this device, here by copies that the test knows
    pinned = []
    monkeypatch.setattr(batching, "PINS", {META.type})
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda rows: pinned.append(rows.clone()) or pinned[-1]
    )
    processes = replace(ProcessGroup(), device=META)
    plan = next(prepared_steps(model, data, recipe, [0], seed=0, processes=processes))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    named = dict(model.named_parameters())
    for name in model.trainable_parameters():
        named[name].requires_grad_(True)
    objective = Objective(model.to(META))
    with LateCopies() as mode:
        totals = trainer.backward(objective, plan, dict.fromkeys(tasks, 1), recipe, processes)
    sent = {id(source) for source, _ in mode.copied}
    assert pinned and {id(rows) for rows in pinned} <= sent
    assert len(totals) == len(tasks) and all(total.device == META for total in totals)
