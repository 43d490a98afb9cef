"""`scale=tiny` changes sizes and counts of a published experiment, and no other field."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from reca.cli import main
from reca.config import compose, scale
from reca.config.schema import Experiment
from tests.align.published import EXPERIMENTS

CONFIG = Path(__file__).resolve().parents[2] / "config"
BAGEL = "models.bagel_7b"


@cache
def loaded(name: str) -> Experiment:
    return compose.load(name, config_dir=CONFIG)


@pytest.mark.parametrize("name", [*EXPERIMENTS, "paper"])
def test_only_sizes_and_counts_differ(name: str) -> None:
    published, tiny = loaded(name), loaded(f"{name}-tiny")
    found = scale.changes(compose.resolved(published), compose.resolved(tiny))
    assert not [change for change in found if scale.reason(change[0]) is None]
    assert published.scale is None and tiny.scale == "tiny"
    for model in tiny.models.values():
        side = 32 if model.network.get("vq_condition") == "quarter" else 16
        assert model.align.steps == 3 and model.network["resolution"] == side
    # what a network has by default counts as well: a size left out must not bring another field with it
    for one, model in published.models.items():
        before, after = (
            parsed(model.family, model.network),
            parsed(model.family, tiny.models[one].network),
        )
        assert not [
            change
            for change in scale.changes(before, after)
            if scale.reason(f"models.{one}.network.{change[0]}") is None
        ]


def parsed(family: str, network: dict[str, Any]) -> dict[str, Any]:
    """A network with its defaults, and for Harmon with those of the language model that it really has."""
    config, options = importlib.import_module(f"reca.models.{family}.config").parse(network)
    language = {"llm": asdict(config.language)} if hasattr(config, "language") else {}
    return {**asdict(config), **language, "options": asdict(options)}


KEPT = (
    "name", "seeds", "arms", "expect", "mirror", "models.m.family", "models.m.cache_dtype",
    "models.m.weights.source", "models.m.weights.file", "models.m.weights.companions.vision",
    "models.m.network.options.text_dropout", "models.m.network.options.max_text", "models.m.network.llm.rope_theta",
    "models.m.network.mar.dropout", "models.m.network.mar.repeats", "models.m.network.vae.scale",
    "models.m.network.system_prompt", "models.m.network.max_text", "models.m.align.precision",
    "models.m.align.activation_checkpointing", "models.m.align.accumulation", "models.m.align.schedule",
    "models.m.align.order", "models.m.align.lr", "models.m.align.tasks.reca.weight", "models.m.sampler.guidance",
    "models.m.sampler.options.order", "data.reconstruct.source", "data.reconstruct.options.image",
    "benchmarks.b.source", "benchmarks.b.scorer", "benchmarks.b.judge.model", "benchmarks.b.seed_schedule",
    "benchmarks.b.sampler.m.guidance", "benchmarks.b.batch_size",
)  # fmt: skip


@pytest.mark.parametrize("path", KEPT)
def test_what_makes_a_recipe_is_not_on_the_list(path: str) -> None:
    assert scale.reason(path) is None


def test_numbers_of_a_run_keep_their_share() -> None:
    """Warm-up, horizon and checkpoints in proportion to the steps, rounded up; nothing where nothing was."""
    found = {
        name: [(m.align.warmup, m.align.horizon) for m in loaded(f"{name}-tiny").models.values()]
        for name in ("paper_bagel", "paper_showo_256", "paper_harmon_15b", "paper_openuni_b")
    }
    assert found == {
        "paper_bagel": [(3, None)],  # all steps are warm-up
        "paper_showo_256": [(1, 6)],
        "paper_harmon_15b": [(2, 120)],  # micro-batches
        "paper_openuni_b": [(1, 12)],  # micro-batches
    }


def test_variants_of_a_network_stay_apart() -> None:
    sides = {
        name: next(iter(loaded(f"{name}-tiny").models.values())).network["condition_resolution"]
        for name in ("ablation_bagel_vit_224", "ablation_bagel_vit_512", "ablation_bagel_vae_256")
    }
    assert list(sides.values()) == [16, 32, 16]
    (vq,) = loaded("paper_showo_vq-tiny").models.values()
    assert "clip_vision" not in vq.network and "projector" not in vq.network


def test_results_of_other_experiments_are_taken_at_the_same_scale() -> None:
    (model,) = loaded("paper_harmon_plus-tiny").models.values()
    assert model.weights.path == "results/paper_harmon_plus_stage1-tiny/harmon_15b/sft/seed-42"


def test_a_scale_has_a_name_that_no_experiment_can_have() -> None:
    tiny = compose.load("paper_bagel", ["scale=tiny"], CONFIG)
    assert tiny == loaded("paper_bagel-tiny") and scale.label(tiny) == "paper_bagel-tiny"
    assert scale.split("paper_bagel-tiny") == ("paper_bagel", "tiny")
    assert scale.split("paper_bagel") == ("paper_bagel", None)
    assert scale.split("my-results") == ("my-results", None)
    with pytest.raises(ValueError, match="a name is made of a-z, 0-9 and _"):
        compose.load("laptop", ["name=laptop-tiny"], CONFIG)


def test_other_overrides_have_the_last_word() -> None:
    experiment = compose.load("paper_bagel", [f"{BAGEL}.align.steps=7", "scale=tiny"], CONFIG)
    align = experiment.models["bagel_7b"].align
    assert (align.steps, align.tasks["reca"].batch) == (7, 2)


@pytest.mark.parametrize("name", ["laptop", "laptop_pretrain"])
def test_the_laptops_experiments_have_no_scale(name: str) -> None:
    with pytest.raises(ValueError, match="scale tiny is for experiments on released weights"):
        compose.load(name, ["scale=tiny"], CONFIG)


def test_an_unknown_scale_gets_one_line() -> None:
    with pytest.raises(ValueError, match="scale = 'small': must be "):
        compose.load("paper_bagel", ["scale=small"], CONFIG)


def test_weights_of_a_users_own_do_not_fit_another_size() -> None:
    own = f"{BAGEL}.weights={{kind: shipped, path: mine, source: null}}"
    with pytest.raises(ValueError, match=r"weights\.path = 'mine': must be below results/"):
        compose.load("paper_bagel", [own, "scale=tiny"], CONFIG)


def test_a_scale_that_sets_more_than_sizes_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(CONFIG, tmp_path / "config")
    path = folder / "scales/tiny.yaml"
    text = path.read_text()
    for where, more, key in (
        (
            ("networks", "bagel"),
            {"options": {"text_dropout": 0.0}},
            "network.options.text_dropout = 0.0",
        ),
        (("networks", "bagel", "vae"), {"shift_factor": 0.0}, "network.vae.shift_factor = 0.0"),
        (("benchmark",), {"batch_size": 1}, "batch_size = 1"),
    ):
        plain = yaml.safe_load(text)
        section = plain
        for name in where:
            section = section[name]
        section |= more
        path.write_text(yaml.safe_dump(plain))
        with pytest.raises(ValueError, match="neither a size nor a count") as caught:
            compose.load("paper_bagel", ["scale=tiny"], folder)
        assert key in str(caught.value) and str(path) in str(caught.value)


def test_check_builds_the_tiny_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "janus_pro", "scale=tiny"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("janus_pro-tiny: ") and "network fits family janus" in said
    assert "on two CPU cores" in said


def test_the_difference_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "paper_bagel", "scale=tiny", "--diff"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{BAGEL}.align.steps: 1000 -> 3  # number of optimiser steps" in lines
    assert any(line.startswith(f"{BAGEL}.network.special.bos: (default) -> 1025") for line in lines)
    assert all("  # " in line for line in lines)
    assert main(["compose", "paper_bagel-tiny", "--diff"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["compose", "paper_bagel", "seeds=[1]", "--diff"]) == 0
    assert capsys.readouterr().out == f"seeds: {json.dumps([0])} -> {json.dumps([1])}\n"
