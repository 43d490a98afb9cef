"""The verbs with Harmon: from a rendered world through pre-training, cache and alignment to pictures and answers."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from reca.cli import main
from reca.config.schema import DataSource, ToyWorld
from reca.core.artifacts import read_json, read_manifest
from reca.data.prompts import bank
from reca.toyworld.pretrain.harmon import _FRONT_END
from reca.toyworld.pretrain.words import TURN_END, build_chat_tokenizer
from tests.models import harmon_tiny

CAPTION = dict.fromkeys(("noise", "relation", "count", "two", "colour", "single_colour"), 0.3)
WORLD = ToyWorld(images=12, single_object_share=0.5, caption=CAPTION)
DATA = asdict(DataSource(kind="world", world=WORLD))
PLAIN = {"precision": "fp32", "prompts": "laptop"}
RECIPE = {"tasks": {"reca": {"batch": 2}, "i2t": {"batch": 2}}, "steps": 2, **PLAIN}
PHASE = {"tasks": {"t2i": {"batch": 2}, "i2t": {"batch": 2}}, "steps": 2, **PLAIN}


def network() -> dict:
    words = build_chat_tokenizer([*bank("laptop"), _FRONT_END])
    described = harmon_tiny.network()
    described["llm"]["vocab_size"] = len(words)
    described["vae"]["scale"] = 1.0
    return described | {"end": words.convert_tokens_to_ids(TURN_END)}


def run(verb: str, *more: str, section: object = None, **options: object) -> None:
    words = [verb, *more]
    if section is not None:
        words += ["--section", json.dumps(section)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    assert main(words) == 0, words


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run the chain once; tests look at what it left."""
    root = tmp_path_factory.mktemp("harmon-verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run("render", section=asdict(WORLD), out="data/world")
        world = ["--data", "reconstruct=data/world"]
        shared = {"family": "harmon", "network": network()}
        fit = {"steps": 2, "batch": 4, "lr": 1e-3, "warmup": 1}
        run("pretrain", "vae", *world, section={**shared, "fit": fit}, seed=0, work="w/vae",
            out="vae")  # fmt: skip
        roles = [*world, "--data", "answer=data/world", "--input", "vae=vae"]
        phases = {"a_joint": PHASE}
        run("pretrain", "base", *roles, section={**shared, "phases": phases}, seed=0,
            work="w/base", out="made")  # fmt: skip
        weights = {"kind": "shipped", "path": "made"}
        run("base", section={**shared, "weights": weights}, out="base")
        for use in ("draw", "read"):
            section = {"family": "harmon", "data": {"reconstruct": DATA}}
            run("cache", section=section, model="base", data="data/world", use=use,
                work=f"w/{use}", out=f"cache/{use}")  # fmt: skip
        for arm in ("reca", "sft", "shuffled"):
            align(arm, f"{arm}/seed-0")
    return root


def align(arm: str, out: str) -> None:
    data = {"reconstruct": DATA, "answer": DATA}
    section = {"family": "harmon", "align": RECIPE, "data": data}
    roles = ["--data", "reconstruct=data/world", "--data", "answer=data/world"]
    caches = ["--cache", "draw=cache/draw", "--cache", "read=cache/read"]
    run("align", *roles, *caches, section=section, model="base", arm=arm, seed=0,
        work=f"w/{out}", out=out)  # fmt: skip


@pytest.fixture
def inside(chain, monkeypatch):
    monkeypatch.chdir(chain)
    return chain


def test_every_stage_leaves_a_record_and_the_trail_is_sound(inside, capsys):
    stages = ["data", "vae", "made", "base", "cache", "reca", "sft", "shuffled"]
    assert main(["audit", *stages]) == 0
    assert "9 stages" in capsys.readouterr().out
    assert set(read_json("cache/draw/cache.json")["features"]) == {"target"}
    assert set(read_json("cache/read/cache.json")["features"]) == {"latents"}


def test_arms_train_the_network_and_never_the_vae(inside):
    base = read_manifest("base")["outputs"]
    arms = [read_manifest(f"{arm}/seed-0")["outputs"] for arm in ("reca", "sft", "shuffled")]
    assert all(arm["vae.safetensors"] == base["vae.safetensors"] for arm in arms)
    trained = {arm["model.safetensors"]["sha256"] for arm in [base, *arms]}
    assert len(trained) == 4


def test_same_command_gives_the_same_model(inside):
    align("reca", "again/seed-0")
    first, second = (read_manifest(f"{name}/seed-0")["outputs"] for name in ("reca", "again"))
    assert first == second


def test_pictures_and_answers_from_the_command_line(inside, capsys):
    model, few = ["--model", "reca/seed-0"], ["--steps", "3", "--guidance", "2"]
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        words = ["draw", "a red circle", "--out", f"{name}.png", "--seed", seed, *model, *few]
        assert main(words) == 0
    first, second, third = ((inside / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert first == second != third
    assert main(["reconstruct", "one.png", "--out", "again.png", *model, *few]) == 0
    assert (inside / "again.png").is_file()
    capsys.readouterr()
    assert main(["ask", "one.png", "what color is the circle ?", *model]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["ask", "one.png", "which zebra ?", *model]) == 2
    assert "not in this model's vocabulary" in capsys.readouterr().err


def test_pretraining_wants_what_fits(inside, capsys):
    fit = {"steps": 1, "batch": 2, "lr": 1e-3}
    scaled = network()
    scaled["vae"]["scale"] = 0.5
    words = ["pretrain", "vae", "--data", "reconstruct=data/world", "--seed", "0", "--work", "w/x"]
    section = json.dumps({"family": "harmon", "network": scaled, "fit": fit})
    assert main([*words, "--section", section, "--out", "x"]) == 2
    assert "set it to 1" in capsys.readouterr().err
