"""Tiny OpenUni from nothing: parts that learn, phases that train what they name, words that fit the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from reca.align.state import freeze
from reca.config import compose
from reca.config.schema import Fit, ToyWorld
from reca.core.ownership import WorkFolder
from reca.data.prompts import bank
from reca.models.openuni.weights import is_trained
from reca.models.registry import build_model, load_model
from reca.toyworld.pretrain import openuni
from reca.toyworld.render import render

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network():
    """The shipped words with a smaller network."""
    found = yaml.safe_load((ROOT / "config/model/openuni_tiny.yaml").read_text())["network"]
    found["llm"] |= {"num_hidden_layers": 1}
    found["vit"] |= {"num_hidden_layers": 1}
    found["sana"] |= {"num_layers": 1}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    caption = compose.load("laptop_pretrain_openuni").data["reconstruct"].world.caption
    render(ToyWorld(kind="images", images=32, seed=1, caption=caption), folder)
    return folder


@pytest.fixture(scope="module")
def parts(network, world, tmp_path_factory):
    """Both parts, trained for a few steps; each learns."""
    root = tmp_path_factory.mktemp("parts")
    for name, train in openuni.PARTS.items():
        recipe = Fit(steps=8, batch=16, lr=3e-3, warmup=1, checkpoint_every=8)
        places = {"seed": 0, "work": root / f"{name}-work", "out": root / name}
        last = train(network, recipe, world, **places)
        first = json.loads((root / f"{name}-work/log.jsonl").read_text().splitlines()[0])
        assert last < first["loss"]["total"], name
    return {name: root / name for name in openuni.PARTS}


def test_the_folder_holds_the_trained_parts_and_the_worlds_words(network, parts, tmp_path):
    openuni.assemble(network, prompts=bank("laptop"), seed=0, parts=parts, out=tmp_path / "base")
    model = load_model(tmp_path / "base")
    vision = openuni.load_checkpoint(parts["vision"] / openuni.VISION_FILE)
    own = model.network.lmm.state_dict()
    assert vision and all(torch.equal(own[name], tensor) for name, tensor in vision.items())
    assert model.text.caption("a red circle") and model.text.reconstruction(bank("laptop")[0])
    wrong = network | {"special": network["special"] | {"end": 1}}
    with pytest.raises(ValueError, match="the world's vocabulary requires"):
        openuni.assemble(wrong, prompts=bank("laptop"), seed=0, parts=parts, out=tmp_path / "x")
    scaled = network | {"vae": network["vae"] | {"scaling_factor": 0.5}}
    with pytest.raises(ValueError, match="latents are standardised here"):
        recipe = Fit(steps=1, batch=1, lr=1.0)
        openuni.pretrain_vae(scaled, recipe, Path(), seed=0, work=tmp_path, out=tmp_path)


@pytest.mark.parametrize(
    ("experiment", "last"),
    [("laptop_pretrain_openuni", "c_generate"), ("laptop_pretrain_openuni_seeds", "f_draw")],
)
def test_phases_train_the_reader_and_then_what_reca_trains(experiment, last):
    shipped = compose.load(experiment)
    (config,) = shipped.models.values()
    model = build_model("openuni", config.network)
    for name, phase in shipped.pretrain.phases.items():
        trained = freeze(model, phase.trains)
        drawing = {is_trained(n.removeprefix("network.")) for n in trained}
        assert drawing == {name == last}, name
        if name != last:
            assert not any("vision_tower" in n or "multi_modal" in n for n in trained)


def test_a_base_that_was_stopped_finds_its_work_folder_again(tmp_path):
    """`start.json` of the phases' first model is the stage's own."""
    work = WorkFolder(tmp_path / "work", "pretrain base")
    work.claim()
    for name in ("start", "cache", "phases"):
        (work.path / name).mkdir()
    (work.path / "start.json").write_text("{}")
    work.check([])
