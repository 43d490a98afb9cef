"""The laptop's base model from nothing, at the smallest size: it learns, resumes exactly, and rebuilds bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from reca.config.recipe import Recipe, TaskRecipe
from reca.config.schema import DataSource, Fit, ToyWorld
from reca.core.artifacts import sha256_file
from reca.data.prompts import bank
from reca.models.registry import load_model
from reca.toyworld.pretrain import fit, reader, run, showo, tokenizer
from reca.toyworld.pretrain.words import build_tokenizer
from reca.toyworld.render import render

ROOT = Path(__file__).parents[2]
CAPTION = {
    "noise": 0.1,
    "relation": 0.1,
    "count": 0.1,
    "two": 0.2,
    "colour": 0.3,
    "single_colour": 0.5,
}


@pytest.fixture(scope="module")
def network() -> dict[str, Any]:
    described = yaml.safe_load((ROOT / "config/model/showo_tiny.yaml").read_text())["network"]
    described["llm"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    described["vq"] |= {
        "ch": 8,
        "enc_ch_mult": [1, 1, 1],
        "dec_ch_mult": [1, 1, 1],
        "z_channels": 6,
    }
    described["clip_vision"] |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    described["projector"] = [16, 32, 32]
    return described


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    render(ToyWorld(images=48, seed=1, single_object_share=0.4, caption=CAPTION), root / "pictures")
    render(ToyWorld(kind="text", images=24, seed=2), root / "text")
    return {"reconstruct": root / "pictures", "answer": root / "pictures", "text": root / "text"}


def test_words_cover_everything_that_is_said() -> None:
    words = build_tokenizer(bank("laptop"))
    for text in (
        *bank("laptop"),
        "USER: \n how many circles ? ASSISTANT: three circles at the top left",
    ):
        assert words.unk_token_id not in words(text)["input_ids"], text
    assert words.decode(words("two red bolts")["input_ids"]) == "two red bolts"
    assert words.eos_token_id == len(words) - 1


@pytest.mark.parametrize("part", ["tokenizer", "reader"])
def test_parts_learn_and_resume_bit_for_bit(
    network: dict[str, Any],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    train = {"tokenizer": tokenizer.pretrain_tokenizer, "reader": reader.pretrain_reader}[part]
    name = {"tokenizer": tokenizer.FILE, "reader": reader.FILE}[part]
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
    assert train(network, recipe, folders["reconstruct"], **again) == last
    assert train(network, recipe, folders["reconstruct"], **again) == last  # nothing left to train
    assert sha256_file(tmp_path / "out" / name) == sha256_file(tmp_path / "out2" / name)
    with pytest.raises(ValueError, match=r"recipe\.lr"):
        train(network, Fit(steps=9, batch=16, lr=1e-3), folders["reconstruct"], **again)


def test_the_target_rebuilds_the_base_model(
    network: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)  # the global generator must not matter
    common = {"lr": 1e-3, "warmup": 1, "checkpoint_every": 2, "precision": "fp32"}
    phases = {
        "a_language": Recipe(tasks={"text": TaskRecipe(1.0, 4)}, steps=2, **common),
        "b_joint": Recipe(
            tasks={
                "t2i": TaskRecipe(1.0, 4),
                "i2t": TaskRecipe(1.0, 4),
                "text": TaskRecipe(1.0, 2),
            },
            steps=3,
            **common,
        ),
    }
    sources = {role: DataSource(kind="world") for role in folders}
    parts = {name: tmp_path / name for name in ("tokenizer", "reader")}
    fitted = Fit(steps=2, batch=8, lr=1e-3, warmup=1)
    hashes = set()
    for turn in "ab":
        work, out = tmp_path / turn / "work", tmp_path / turn / "out"
        tokenizer.pretrain_tokenizer(
            network, fitted, folders["reconstruct"], seed=0, work=work / "t", out=parts["tokenizer"]
        )
        reader.pretrain_reader(
            network, fitted, folders["reconstruct"], seed=0, work=work / "r", out=parts["reader"]
        )
        run.pretrain_base(
            "showo",
            network,
            phases,
            sources,
            folders=folders,
            parts=parts,
            seed=0,
            work=work / "b",
            out=out,
            code="test",
        )
        hashes.add(tuple(sha256_file(path) for path in sorted(out.glob("*.safetensors"))))
        torch.manual_seed(2)
    assert len(hashes) == 1
    model = load_model(tmp_path / "a" / "out")
    assert sorted(path.name for path in (tmp_path / "a" / "out").glob("*.jsonl")) == [
        "a_language.jsonl",
        "b_joint.jsonl",
    ]
    assert model.family == "showo"


def test_a_wrong_vocabulary_size_is_named(network: dict[str, Any], tmp_path: Path) -> None:
    wrong = {**network, "llm_vocab_size": 40, "endoftext": 39}
    with pytest.raises(ValueError, match=r"network\.llm_vocab_size is 40"):
        showo.assemble(wrong, prompts=bank("laptop"), seed=0, parts={}, out=tmp_path)
