"""The search for a laptop recipe: scores of development prompts only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perf import laptop_bridge, laptop_search
from reca.config.schema import Sampler
from reca.evaluation.tasks import laptop_prompts
from reca.models.registry import load_model

BASE = Path(__file__).parents[2] / "weights/bagel_tiny"


def test_a_row_has_both_rules_and_never_samples_the_test_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    splits = []
    for name in ("prompts", "held_out_scenes"):
        made: Any = getattr(laptop_prompts, name)

        def spied(split: str, *others: Any, made: Any = made) -> Any:
            splits.append(split)
            return made(split, *others)

        monkeypatch.setattr(laptop_search.asked, name, spied)
    monkeypatch.setattr(laptop_search, "RECONSTRUCTIONS", 2)
    sampler = Sampler(steps=2, guidance=[2.0], options={"timestep_shift": 3.0})
    found = laptop_search.scores(load_model(BASE), sampler, [2.0], 1)
    assert set(splits) == {"development"}
    assert {"dense", "geneval", "strict", "objects"} <= set(found["by_guidance"]["2.0"])
    json.dumps(found, allow_nan=False)


def test_edits_are_those_of_the_development_split(monkeypatch: pytest.MonkeyPatch) -> None:
    made, splits = laptop_search.laptop_edit.edits, []

    def spied(split: str, *others: Any) -> Any:
        splits.append(split)
        return made(split, *others)

    monkeypatch.setattr(laptop_search.laptop_edit, "edits", spied)
    monkeypatch.setattr(laptop_search, "EDITS_PER_KIND", 4)
    monkeypatch.setattr(laptop_search, "EDIT_LEVELS", (3.0,))
    sampler = Sampler(steps=13, guidance=[3.0], options={"timestep_shift": 3.0})
    found = laptop_search.edit_scores(load_model(BASE.with_name("bagel_tiny_edit")), sampler)
    assert splits == ["development"] and sampler.options == {"timestep_shift": 3.0}
    assert 0 < found["3.0"]["edit_kept"] < 1  # it edits: unchanged sources would keep everything
    json.dumps(found, allow_nan=False)


def test_the_shipped_base_binds_no_colour_to_its_noun() -> None:
    found = laptop_bridge.bridge(load_model(BASE), scenes=80, train=60)
    assert min(found["colour"]["picture"]) > 0.8
    assert max(found["colour"]["noun, plain"][:2]) < 0.4
    assert found["shape"]["noun, plain"][2] > 0.8


def test_a_base_goes_on_from_the_base_of_its_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(laptop_search, "_worlds", lambda experiment, root: {})
    arguments = ["base", "--experiment", "laptop_pretrain_bagel_edit_bound", "--seed", "1"]
    arguments += ["--work", str(tmp_path), "--until", "e_edit"]
    monkeypatch.setattr("sys.argv", ["laptop_search", *arguments])
    laptop_search.main()
    name = "network.language_model.model.layers.0.self_attn.q_proj.weight"
    bases = [load_model(BASE.with_name("bagel_tiny_bound") / seed) for seed in ("0", "1")]
    other, own = (base.get_parameter(name) for base in bases)
    begun = load_model(tmp_path / "start").get_parameter(name)
    assert torch.equal(begun, own) and not torch.equal(begun, other)


def test_a_dominant_direction_shows_in_the_singular_values() -> None:
    values = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert laptop_bridge._largest_direction(values) < 1.5
    values[:, 0] *= 100
    assert 70 < laptop_bridge._largest_direction(values) < 140
