"""Every published recipe trains at tiny size, in its own precision and with its own checkpointing."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from reca.align import distributed, trainer
from reca.cli import main
from reca.config.compose import load
from reca.config.recipe import Recipe
from reca.models.registry import runnable
from tests.align import published

ARMS = published.arms()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> published.Rehearsal:
    return published.Rehearsal(tmp_path_factory.mktemp("published"))


def test_the_walk_leaves_no_experiment_out() -> None:
    assert {name for name, *_ in ARMS} == set(published.EXPERIMENTS) and len(ARMS) >= 19
    trained = {load(name).models[model].family for name, model, _ in ARMS}
    assert set(runnable()) <= trained


@pytest.mark.parametrize(("name", "model", "arm"), ARMS, ids=["-".join(one) for one in ARMS])
def test_a_published_recipe_trains(
    rehearsal: published.Rehearsal,
    name: str,
    model: str,
    arm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load(name).models[model]
    seen = watched(monkeypatch)
    out = rehearsal.train(name, model, arm)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    drawing = "t2i" if arm == "sft" else "reca"
    expected = {drawing if task == "reca" else task for task in config.align.active()}
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"].keys() == expected for line in lines)
    assert not any("skipped" in line for line in lines)
    # what the recipe says is what ran
    assert config.align.precision == "bf16" and seen["autocast"] == {torch.bfloat16}
    assert seen["recomputed"] == config.align.activation_checkpointing
    before, after = (load_file(at / "model.safetensors") for at in (rehearsal.base(config), out))
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed and all(after[key].isfinite().all() for key in changed)


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the trainer switched on: autocast's types, and whether a block was computed again."""
    seen: dict[str, object] = {"autocast": set(), "recomputed": False}
    autocast, checkpoint = trainer.autocast, distributed.checkpoint

    def noted(recipe: Recipe, device: torch.device) -> torch.autocast:
        found = autocast(recipe, device)
        if found._enabled:
            seen["autocast"].add(found.fast_dtype)  # type: ignore[attr-defined]
        return found

    def again(*arguments: object, **options: object) -> object:
        seen["recomputed"] = True
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(trainer, "autocast", noted)
    monkeypatch.setattr(distributed, "checkpoint", again)
    return seen


def test_only_sizes_differ_from_the_published_recipe() -> None:
    """The rehearsal changes steps and batch sizes, and no other field of any recipe."""
    for name, model, _ in ARMS:
        config = load(name).models[model]
        full, small = asdict(config.align), published.small(config)
        for task in (*full["tasks"].values(), *small["tasks"].values()):
            del task["batch"]
        assert {**small, "steps": full["steps"]} == full


def test_out_folders_are_whole(rehearsal: published.Rehearsal) -> None:
    """The audit walks from every trained arm to its cache and base."""
    made = sorted({path.parent for path in rehearsal.root.rglob("manifest.json")})
    assert len(made) > len(runnable()) and main(["audit", *map(str, made)]) == 0
