"""Tiny BAGEL from nothing: its parts learn and resume exactly, phases train what they name, the folder rebuilds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from reca.align.state import freeze
from reca.config import compose
from reca.config.recipe import Recipe, TaskRecipe
from reca.config.schema import DataSource, Fit, ToyWorld
from reca.core.artifacts import sha256_file
from reca.data.prompts import bank
from reca.models.bagel.encoders import FrozenVae
from reca.models.bagel.weights import is_trained
from reca.models.checkpoint_io import load_safetensors
from reca.models.registry import build_model, load_model
from reca.toyworld.pretrain import bagel, fit, run
from reca.toyworld.render import render

ROOT = Path(__file__).parents[2]
CAPTION = {"noise": 0.1, "relation": 0.1, "count": 0.1, "two": 0.2, "colour": 0.3}
CAPTION |= {"single_colour": 0.5}
FILES = {"vae": bagel.VAE_FILE, "vision": bagel.TOWER_FILE}


@pytest.fixture(scope="module")
def network() -> dict[str, Any]:
    described = yaml.safe_load((ROOT / "config/model/bagel_tiny.yaml").read_text())["network"]
    described["llm"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    described["vit"] |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    described["vae"] |= {"ch": 8}
    return described


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    render(ToyWorld(images=48, seed=1, caption=CAPTION), root / "pictures")
    render(ToyWorld(kind="text", images=24, seed=2), root / "text")
    render(ToyWorld(kind="text", images=20, seed=4, binding=0.8), root / "told")
    render(ToyWorld(images=40, seed=3, caption=CAPTION, asks=["colour"]), root / "colours")
    return {
        "reconstruct": root / "pictures",
        "answer": root / "pictures",
        "text": root / "text",
        "colour": root / "colours",
        "told": root / "told",
    }


@pytest.fixture(scope="module")
def parts(network, folders, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    recipe = Fit(steps=3, batch=8, lr=1e-3, warmup=1)
    for name, train in bagel.PARTS.items():
        places = {"seed": 0, "work": root / f"work-{name}", "out": root / name}
        train(network, recipe, folders["reconstruct"], **places)
    return {name: root / name for name in bagel.PARTS}


@pytest.mark.parametrize("part", bagel.PARTS)
def test_parts_learn_and_resume_bit_for_bit(network, folders, tmp_path, monkeypatch, part):
    train, name = bagel.PARTS[part], FILES[part]
    recipe = Fit(steps=8, batch=16, lr=3e-3, warmup=1, checkpoint_every=3)
    places = {"seed": 0, "work": tmp_path / "work", "out": tmp_path / "out"}
    last = train(network, recipe, folders["reconstruct"], **places)
    first = json.loads((tmp_path / "work" / "log.jsonl").read_text().splitlines()[0])
    assert last < first["loss"]["total"]
    step, calls = fit._step, []

    def killed(*arguments: Any) -> Any:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*arguments)

    again = {"seed": 0, "work": tmp_path / "work2", "out": tmp_path / "out2"}
    monkeypatch.setattr(fit, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(network, recipe, folders["reconstruct"], **again)
    monkeypatch.setattr(fit, "_step", step)
    train(network, recipe, folders["reconstruct"], **again)
    assert sha256_file(tmp_path / "out" / name) == sha256_file(tmp_path / "out2" / name)


@torch.no_grad()
def test_unit_spread_changes_latents_but_no_picture(network):
    from reca.models.bagel.config import parse

    sizes, _ = parse(network)
    torch.manual_seed(0)
    frozen, pixels = FrozenVae(sizes.vae), torch.randn(64, 3, 16, 16)
    none = torch.zeros(64, sizes.vae.z_channels, 8, 8)
    before = frozen.moments(pixels)
    noise = torch.randn_like(none)
    pictures = frozen.vae.get_submodule("decoder")(frozen.latents(before, noise))
    bagel.to_unit_spread(frozen.vae, pixels)
    after = frozen.moments(pixels)
    again = frozen.vae.get_submodule("decoder")(frozen.latents(after, noise))
    torch.testing.assert_close(again, pictures, rtol=1e-4, atol=1e-4)
    spread = frozen.latents(after, none).transpose(0, 1).flatten(1).std(dim=1)
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-3, atol=1e-3)


def test_the_base_model_rebuilds_and_each_phase_trains_its_own(network, folders, parts, tmp_path):
    common = {"lr": 1e-3, "warmup": 1, "precision": "fp32", "steps": 2}
    shipped = compose.load("laptop_pretrain_bagel")
    assert shipped.pretrain is not None
    phases = {
        name: Recipe(
            tasks={task: TaskRecipe(1.0, 4) for task in phase.tasks}, trains=phase.trains, **common
        )
        for name, phase in shipped.pretrain.phases.items()
    }
    sources = {role: DataSource(kind="world") for role in folders}
    hashes = set()
    for turn in "ab":
        torch.manual_seed(ord(turn))  # the global generator must not matter
        out = tmp_path / turn / "out"
        run.pretrain_base(
            "bagel", network, phases, sources, folders=folders, parts=parts, seed=0,
            work=tmp_path / turn / "work", out=out, code="test",
            binding={"c_joint": 0.3}, answers={"b_align": "colour"}, texts={"a_language": "told"},
            storage="float16", log_every=2,
        )  # fmt: skip
        hashes.add(tuple(sha256_file(path) for path in sorted(out.glob("*.safetensors"))))
        stored = load_safetensors(out / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert len(hashes) == 1
    logs = [path.read_text().splitlines() for path in (tmp_path / "a" / "out").glob("*.jsonl")]
    assert [[json.loads(line)["step"] for line in log] for log in logs] == [[2]] * len(phases)
    caches = (tmp_path / "a" / "work" / "cache").glob("read-*/manifest.json")
    assert len(list(caches)) == 2  # phase b_align read pictures of its own
    start, end = (load_model(tmp_path / "a" / name) for name in ("work/start", "out"))
    before = start.state_dict()
    kept = {name: weight.half().float() for name, weight in before.items()}  # what is stored
    changed = {n for n, w in end.state_dict().items() if not torch.equal(w, kept[n])}
    assert not any("vit_model" in name or name.startswith("frozen.") for name in changed)
    assert any(is_trained(name) for name in changed)
    assert any("connector" in name for name in changed)


def test_phases_split_the_network_between_the_experts():
    """Every weight but the tower's is trained by some phase, and drawing trains what RecA trains."""
    shipped = compose.load("laptop_pretrain_bagel")
    assert shipped.pretrain is not None
    described = shipped.models["bagel_tiny"].network
    trained: dict[str, set[str]] = {}
    for name, phase in shipped.pretrain.phases.items():
        trained[name] = set(freeze(build_model("bagel", described), phase.trains))
    assert not any(is_trained(n) for n in trained["a_language"] | trained["b_align"])
    model = build_model("bagel", described)
    assert trained["d_draw"] == set(model.trainable_parameters())
    names = {n for n, _ in model.named_parameters() if n.startswith("network.")}
    left = names - set().union(*trained.values())
    assert all(name.startswith("network.vit_model.") for name in left)


def test_a_wrong_vocabulary_is_named(network, parts, tmp_path):
    wrong = {**network, "llm": {**network["llm"], "vocab_size": 75}}
    with pytest.raises(ValueError, match=r"llm\.vocab_size 75"):
        bagel.assemble(wrong, prompts=bank("laptop"), seed=0, parts=parts, out=tmp_path)


def test_the_gen_expert_starts_as_the_und_expert(network, parts, tmp_path):
    bagel.assemble(network, prompts=bank("laptop"), seed=0, parts=parts, out=tmp_path)
    state = load_model(tmp_path).official_state()
    twins = {name: name.replace("_moe_gen", "") for name in state if "_moe_gen" in name}
    assert len(twins) == 2 * 14 + 1
    assert all(torch.equal(state[name], state[twin]) for name, twin in twins.items())
