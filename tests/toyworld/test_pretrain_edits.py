"""The base that edits: it goes on from a whole model, knows six words more, trains drawing alone, and rebuilds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reca.config import compose
from reca.config.recipe import Recipe, TaskRecipe
from reca.config.schema import DataSource, ToyWorld
from reca.core.artifacts import read_manifest, sha256_file, verify
from reca.core.rng import numpy_generator
from reca.core.structure import build
from reca.models.bagel.weights import is_trained
from reca.models.registry import load_model
from reca.toyworld.edits import EDITS, WORDS, draw_edit
from reca.toyworld.pretrain import run
from reca.toyworld.render import render

ROOT = Path(__file__).parents[2]
START, SHIPPED = ROOT / "weights/bagel_tiny", ROOT / "weights/bagel_tiny_edit"
CAPTION = {"noise": 0.1, "relation": 0.1, "count": 0.1, "two": 0.2, "colour": 0.3}
CAPTION |= {"single_colour": 0.5}


def experiment():
    found = compose.load("laptop_pretrain_bagel_edit")
    assert found.pretrain is not None
    return found.pretrain, found.models["bagel_tiny_edit"].network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    render(ToyWorld(images=24, seed=1, caption=CAPTION), root / "pictures")
    render(ToyWorld(kind="edits", images=12, seed=2), root / "edits")
    return {"reconstruct": root / "pictures", "edit": root / "edits"}


def test_the_target_rebuilds_the_base_and_reading_stays_as_it_was(folders, tmp_path):
    pretrain, network = experiment()
    (phase,) = pretrain.phases.values()
    phase.steps, phase.warmup = 2, 1
    phase.tasks = {task: TaskRecipe(1.0, 4) for task in phase.tasks}
    sources = {role: DataSource(kind="world") for role in folders}
    hashes = set()
    for turn in "ab":
        torch.manual_seed(ord(turn))  # the global generator must not matter
        losses = run.pretrain_base(
            "bagel", network, pretrain.phases, sources, folders=folders, parts={}, seed=0,
            work=tmp_path / turn / "work", out=tmp_path / turn / "out", code="test", begin=START,
        )  # fmt: skip
        assert set(losses["e_edit"]) == {"t2i", "edit"}
        files = sorted((tmp_path / turn / "out").glob("*.safetensors"))
        hashes.add(tuple(sha256_file(path) for path in files))
    assert len(hashes) == 1
    old, new = load_model(START), load_model(tmp_path / "a/out")
    before = old.state_dict()
    for name, weight in new.state_dict().items():
        same = torch.equal(weight[: len(before[name])], before[name])
        assert same == (not is_trained(name.removeprefix("network."))) or "_embed" in name, name


def test_the_shipped_base_knows_every_instruction_and_reads_as_its_start():
    model, old = load_model(SHIPPED), load_model(START)
    told = [
        draw_edit(kind, numpy_generator("test", kind, i)).instruction
        for kind in EDITS
        for i in range(40)
    ]
    assert {word for text in told for word in text.split()} >= set(WORDS)
    rows = model.text.ids(told)  # refuses an unknown word
    assert max(max(row) for row in rows) == len(old.text.tokenizer) + len(WORDS) - 1
    sentence = "a red circle at the top left"
    assert model.text.ids([sentence]) == old.text.ids([sentence])
    before = old.state_dict()
    for name, weight in model.state_dict().items():
        if not is_trained(name.removeprefix("network.")):
            assert torch.equal(weight[: len(before[name])], before[name]), name


def test_the_shipped_record_is_that_of_the_experiment():
    verify(SHIPPED)
    manifest, (pretrain, network) = read_manifest(SHIPPED), experiment()
    recorded = {n: build(Recipe, p) for n, p in manifest["section"]["phases"].items()}
    assert recorded == dict(pretrain.phases), (
        "fields that the record does not have are at their default"
    )
    assert manifest["section"]["network"] == network and manifest["seed"] == pretrain.seed
    start = sha256_file(START / "manifest.json")
    assert manifest["inputs"]["start"]["sha256"] == start


def test_a_wrong_vocabulary_and_a_family_that_cannot_are_named(tmp_path):
    _, network = experiment()
    wrong = {**network, "llm": {**network["llm"], "vocab_size": 80}}
    with pytest.raises(ValueError, match=r"vocab_size is 80.*6 words are new.*set it to 76"):
        run.continued("bagel", wrong, START, seed=0)
    with pytest.raises(ValueError, match="showo cannot continue from a model"):
        run.continued("showo", {}, START, seed=0)
