"""The edit loss in batches, and edits as a task of the trainer: what is dropped, what learns, what data must say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca.align.batches import plan_step, with_rows
from reca.align.distributed import ProcessGroup
from reca.align.objective import task_loss
from reca.align.trainer import align
from reca.align.training_data import feature_data
from reca.config.recipe import Recipe, TaskRecipe
from reca.config.schema import DataSource
from reca.data.formats import open_dataset
from reca.features import build as cache
from reca.models.bagel.layout import Split, pack
from reca.models.bagel.loss import noised, velocity_loss
from reca.models.bagel.packed import PackInputs, run_pack, target_places
from reca.models.bagel.vision import patchify
from reca.models.contract import editor
from tests.models import bagel_tiny as tiny
from tests.models import showo_tiny

TEXTS = ["what there ?", "what", "there ? what ?"]


@pytest.fixture
def model(tmp_path):
    return tiny.model(tmp_path)


def rows(model):
    pictures = tiny.pictures(6)
    return model.encode(pictures[3:], "edit"), model.encode(pictures[:3], "edit")


def drawn(model, dropout=1.0):
    found = model.sample_edit_noise(3, torch.Generator().manual_seed(1))
    return replace(found, dropout=torch.full((3, 3), float(dropout)))


def packed_loss(model, target, source, ids, noise, dropped):
    """The same loss in the reference's one packed pass."""
    config, patch = model.config, model.config.latent_patch_size
    clean, wanted = (
        patchify(model.frozen.latents(f["target"], noise), patch)
        for f, noise in ((source, noise.source), (target, noise.target))
    )
    point = noised(wanted, noise.gaussian, noise.raw, model.options.timestep_shift)
    side, grid = (config.latent_side,) * 2, tuple(source["grid"][0].tolist())
    samples, latents, times, vit = [], [], [], []
    for row, text in enumerate(ids):
        lost = dropped[row].tolist()
        samples.append(
            [
                Split("vae", grid=side, dropped=lost[0]),
                Split("vit", grid=grid, dropped=lost[1]),
                Split("text", tuple(text), dropped=lost[2]),
                Split("vae", grid=side, target=True),
            ]
        )
        if not lost[0]:
            latents.append(clean[row])
            times.append(torch.zeros(len(clean[row])))
        latents.append(point.x[row])
        times.append(point.t[row].expand(len(point.x[row])))
        if not lost[1]:
            vit.append(source["understanding"][row])
    seen = torch.cat(vit) if vit else torch.zeros(0, config.vit.hidden_size)
    made = pack(samples, config.special, config.vit_max_num_patch_per_side, config.max_latent_size)
    inputs = PackInputs(seen, torch.cat(latents), torch.cat(times))
    states = run_pack(model.network, made, inputs, frozen=True)
    return velocity_loss(model.network, states.latent[target_places(made)], point)


@pytest.mark.parametrize("lost", ["nothing", "one each", "all"])
def test_batches_equal_the_packed_pass_with_every_dropout(model, lost):
    target, source = rows(model)
    dropped = {
        "nothing": torch.zeros(3, 3),
        "one each": torch.eye(3),
        "all": torch.ones(3, 3),
    }[lost].bool()
    noise = replace(drawn(model), dropout=1 - dropped.float())
    found = {}
    ids = model.text.ids(TEXTS)
    losses = {
        "ours": lambda: model.edit_loss(target, source, TEXTS, noise).total,
        "packed": lambda: packed_loss(model, target, source, ids, noise, dropped),
    }
    for name, loss in losses.items():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        grads = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
        found[name] = value.detach(), grads
    torch.testing.assert_close(found["ours"][0], found["packed"][0], rtol=1e-5, atol=1e-5)
    # a weight that nothing passes through has no gradient here and a zero one there
    for name in set(found["ours"][1]) | set(found["packed"][1]):
        ours, packed = (found[k][1].get(name, torch.zeros(())) for k in ("ours", "packed"))
        torch.testing.assert_close(ours, packed.expand_as(ours), rtol=1e-3, atol=1e-5)


def test_only_the_drawing_side_learns_and_source_latents_are_part_of_it(model):
    target, source = rows(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in set(model.trainable_parameters()))
    noise = drawn(model)
    gradients = []
    for seen in (source, {**source, "target": target["target"]}):
        model.zero_grad(set_to_none=True)
        loss = model.edit_loss(target, seen, TEXTS, noise)
        loss.mean.backward()
        assert loss.count == noise.count
        touched = {n for n, w in model.named_parameters() if w.grad is not None}
        assert touched == set(model.trainable_parameters())
        gradients.append(model.network.vae2llm.weight.grad.clone())
    assert not torch.equal(*gradients)


def test_the_draws_are_the_whole_randomness(model):
    first, again = (model.sample_edit_noise(3, torch.Generator().manual_seed(5)) for _ in "ab")
    assert all(
        torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True)
    )
    target, source = rows(model)
    losses = [model.edit_loss(target, source, TEXTS, first).total for _ in "ab"]
    assert torch.equal(*losses)


def test_a_family_that_cannot_edit_says_so(tmp_path):
    plain = showo_tiny.model(tmp_path)
    with pytest.raises(
        ValueError, match="showo generates and reads but cannot edit; use one of: bagel"
    ):
        editor(plain)


# ---- a user's own folder of edits ----------------------------------------------------------------
def own_folder(root: Path, **changes: object) -> Path:
    """Images in a folder: `<stem>.json` next to an image has the instruction and the source."""
    root.mkdir()
    pictures = tiny.pictures(4)
    for number, name in enumerate(("one.png", "two.png", "one-edited.png", "two-edited.png")):
        pictures[number].save(root / name)
    for name, told in (("one", "what there"), ("two", "there ?")):
        told_of = {"caption": told, "source": f"{name}.png", **changes}
        (root / f"{name}-edited.json").write_text(json.dumps(told_of))
    return root


def data_of(model, folder: Path, root: Path):
    recipe = Recipe(
        tasks={"edit": TaskRecipe(1.0, 2)}, steps=3, lr=1e-3, precision="fp32", checkpoint_every=2
    )
    cache.build(model, open_dataset("folder", folder), root / "cache", use="edit", code="test")
    source = {"edit": DataSource(kind="folder", path=str(folder))}
    caches = {"edit": root / "cache"}
    return recipe, feature_data(recipe, source, {"edit": folder}, caches, seed=0, ranks=1)


def test_a_folder_of_edits_trains_the_drawing_side(model, tmp_path):
    recipe, data = data_of(model, own_folder(tmp_path / "mine"), tmp_path)
    pairs = [(e.source, e.target, e.instruction) for e in data.edits]
    ids = cache.open_cache(tmp_path / "cache").ids
    assert [(ids[s], ids[t], told) for s, t, told in pairs] == [
        ("one.png", "one-edited.png", "what there"),
        ("two.png", "two-edited.png", "there ?"),
    ]
    plan = plan_step(model, data, recipe, seed=0, step=0, processes=ProcessGroup())
    batch = with_rows(plan[0], data, torch.device("cpu"))
    wanted = model.encode(tiny.pictures(4), "edit")
    for row, (source, target) in enumerate(zip(batch.sources, batch.indices, strict=True)):
        at = {
            name: i
            for i, name in enumerate(("one.png", "two.png", "one-edited.png", "two-edited.png"))
        }
        for features, index in ((batch.source, source), (batch.features, target)):
            expected = wanted["target"][at[ids[index]]]
            torch.testing.assert_close(features["target"][row], expected, rtol=1e-4, atol=1e-4)
    assert task_loss(model, batch).count == batch.count == 2 * model.config.latent_tokens
    before = {n: w.clone() for n, w in model.named_parameters()}
    summary = align(model, data, recipe, seed=0, work_dir=tmp_path / "work")
    assert summary.loss["edit"] > 0
    changed = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert changed and changed <= set(model.trainable_parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "three.png"}, "source 'three.png' is not an image of this data set"),
        ({"caption": ""}, r"one-edited\.png \('caption' of one-edited\.json is empty or blank\)"),
        ({"source": None}, "no image has a `source`"),
    ],
)
def test_what_a_folder_of_edits_lacks_is_named(model, tmp_path, changes, message):
    folder = own_folder(tmp_path / "mine", **changes)
    with pytest.raises(ValueError, match=message):
        data_of(model, folder, tmp_path)
