"""A seed is a base: every seed of an arm starts from a base model of its own, from weights to the report."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from reca.core.artifacts import read_json, read_manifest
from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

# Two bases and one arm of laptop_smoke, read as docs/laptop_protocol.md says.
RUN = {
    "defaults": ["laptop_smoke", "_self_"],
    "name": "two_bases",
    "title": "Two bases",
    "question": "Does seed k start from base k?",
    "seeds": [0, 1],
    "arms": ["base", "reca"],
    "models": {
        "showo_tiny": {
            "weights": {"kind": "shipped", "path": "weights/two/{seed}"},
            "align": {"tasks": {"i2t": {"weight": 0.0}}},
        }
    },
    "benchmarks": {
        "laptop": {"base_guidance": True, "curve_prompts": 2, "test_seeds": {"prompts": 77}}
    },
}
PRETRAIN = {
    "defaults": ["laptop_pretrain", "_self_"],
    "name": "two_pretrain",
    "title": "Two bases from nothing",
    "question": "?",
    "seeds": [3, 4],
    "models": {
        "showo_tiny": {
            "weights": {
                "kind": "pretrain",
                "path": "results/two_pretrain/showo_tiny/base/seed-{seed}",
            }
        }
    },
    "pretrain": {"start": "weights/two/{seed}"},
}


def write(checkout: Checkout, plain: dict) -> None:
    text = "# @package _global_\n" + yaml.safe_dump(plain, sort_keys=False)
    (checkout.root / f"config/experiment/{plain['name']}.yaml").write_text(text)


def two_weights(checkout: Checkout) -> None:
    """The shipped Show-o as base 0, and another model as base 1: a user's own folder, without a record."""
    weights = checkout.root / "weights"
    shutil.copytree(weights / "showo_tiny", weights / "two/0")
    shutil.copytree(weights / "showo_tiny", weights / "two/1")
    (weights / "two/1/manifest.json").unlink()
    file = weights / "two/1/model.safetensors"
    save_file({name: 0.9 * tensor for name, tensor in load_file(file).items()}, file)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_seed_k_starts_from_base_k(checkout):
    write(checkout, RUN)
    two_weights(checkout)
    checkout.snakemake("--cores", "1", experiment="two_bases")
    model = checkout.root / "results/two_bases/showo_tiny"
    found = [read_manifest(model / f"base/seed-{seed}")["outputs"] for seed in (0, 1)]
    assert found[0]["model.safetensors"] != found[1]["model.safetensors"]
    for seed in (0, 1):
        trained = read_manifest(model / f"reca/seed-{seed}")["inputs"]
        assert trained["model"]["path"].endswith(f"base/seed-{seed}/manifest.json")
        assert trained["cache.draw"]["path"].endswith(f"cache/seed-{seed}/draw/manifest.json")
        sampled = read_manifest(model / f"base-{seed}/laptop/test/samples")["inputs"]
        assert sampled["model"]["path"].endswith(f"base/seed-{seed}/manifest.json")
        levels = read_json(model / f"reca-{seed}/laptop/test/samples/samples.json")["chosen"]
        chosen = read_json(model / "guidance/guidance.json")["chosen"]
        assert levels["dense"] == chosen["reca"]["dense"]
        assert levels["geneval_strict@base"] == chosen["base"]["geneval_strict"]
        assert levels["curve@0.0"] == 0 and levels["curve@2.0"] == 2
    report = checkout.root / "results/two_bases/report"
    (numbers,) = read_json(report / "outcomes.json")["models"]
    assert numbers["bases"] == 2 and len(numbers["outcomes"][0]["base"]["per_seed"]) == 2
    strict = next(row for row in numbers["outcomes"] if row["name"] == "geneval_strict")
    assert strict["primary"] and len(strict["at_base_guidance"]["reca"]["per_seed"]) == 2
    assert list(numbers["curve"]["dense"]["reca"]) == ["0.0", "2.0"]
    assert set(numbers["trained"]) == {"reca"}
    page = re.sub(r"<[^>]*>", "", (report / "index.html").read_text())
    assert "two seeds, each with a base model of its own" in page
    assert "192 rows" in page  # 96 images, seen by the encoders of both
    checkout.run("python3", "-m", "reca", "audit", "results/two_bases")
    assert checkout.plan("two_bases") == {}
    checked = checkout.run("python3", "-m", "reca", "check", "two_bases")
    assert "network fits family showo" in checked


def test_base_k_is_made_from_seed_k(checkout):
    write(checkout, PRETRAIN)
    for seed in (3, 4):
        shutil.copytree(checkout.root / "weights/showo_tiny", checkout.root / f"weights/two/{seed}")
    said = checkout.look("--dry-run", "--printshellcmds", "--config", "experiment=two_pretrain")
    commands = [line for line in said.splitlines() if " reca pretrain " in line]
    assert len(commands) == 2 * 3  # two parts and the rest of each base
    model = "results/two_pretrain/showo_tiny"
    for seed in (3, 4):
        mine = [line for line in commands if f"--seed {seed} " in line]
        outs = {re.search(r"--out (\S+)", line)[1] for line in mine}
        parts = {f"{model}/pretrain/seed-{seed}/{part}" for part in ("tokenizer", "reader")}
        assert outs == {*parts, f"{model}/base/seed-{seed}"}
        (base,) = (line for line in mine if "pretrain base" in line)
        assert all(f"={part}" in base for part in parts) and f"--start=weights/two/{seed}" in base


def test_a_model_may_have_some_of_the_arms(checkout):
    """The experiment on why it works: seven arms of one model, three of those that it is compared with."""
    for steps in (100, 300):
        base = checkout.root / f"results/laptop_reading_{steps}/bagel_tiny_bound/base"
        shutil.copytree(checkout.root / "weights/bagel_tiny_bound/0", base)
    jobs = checkout.plan("laptop_why")
    assert jobs["align"] == 3 * (6 + 5 * 2)
    evaluated = 7 + 5 * 3  # an arm's seeds are one process
    assert sum(jobs[n] for n in jobs if n.startswith("evaluate_test")) == evaluated


def test_a_base_that_is_not_here_is_named(checkout):
    write(checkout, RUN)
    said = checkout.look("-n", "--config", "experiment=two_bases", check=False)
    assert "weights.path = 'weights/two/0': no such folder; make the base model first" in said
    said = checkout.run("python3", "-m", "reca", "check", "two_bases", check=False)
    assert "models.showo_tiny.weights.path = 'weights/two/0': no such folder" in said
