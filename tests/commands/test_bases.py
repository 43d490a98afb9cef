"""`make bases`: which base models there are, and whether they are the shipped ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reca.commands import bases
from reca.config.compose import load
from reca.core.artifacts import Stage


def test_every_shipped_base_has_an_experiment_that_makes_it():
    names = bases.pretraining()
    shipped = {pair[1] for name in names for pair in bases.bases_of(load(name))}
    assert shipped == {path.parent for path in Path("weights").rglob("reca_model.json")}
    starts = [load(name).pretrain.start is not None for name in names]
    assert starts == sorted(starts)  # what goes on from another base comes last


def test_a_base_per_seed():
    path = "models.showo_tiny.weights.path=results/laptop_pretrain/showo_tiny/base/seed-{seed}"
    given = load("laptop_pretrain", [path.replace("{", "\\{").replace("}", "\\}"), "seeds=[2,5]"])
    assert [(str(made), str(shipped)) for made, shipped in bases.bases_of(given)] == [
        (f"results/laptop_pretrain/showo_tiny/base/seed-{seed}", f"weights/showo_tiny/{seed}")
        for seed in (2, 5)
    ]
    without = ["models.showo_tiny.weights.path=results/one", r"pretrain.start=weights/\{seed\}"]
    with pytest.raises(ValueError, match=r"weights.path = 'results/one': must hold \{seed\}"):
        load("laptop_pretrain", without)


def record(folder: Path, **contents: str) -> None:
    with Stage("pretrain base", folder, inputs={}, section={}) as stage:
        for name, content in contents.items():
            (stage.staging / name).write_text(content)


def test_a_base_that_differs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bases, "load", lambda name: name)
    pairs = [(Path("made/0"), Path("weights/0")), (Path("made/1"), Path("weights/1"))]
    monkeypatch.setattr(bases, "bases_of", lambda name: pairs)
    for folder in ("made/0", "weights/0", "weights/1"):
        record(Path(folder), model="a", tokenizer="b")
    with pytest.raises(ValueError, match=r"made/1: no base model here; run: make bases"):
        bases.compare(["some"])
    record(Path("made/1"), model="other", tokenizer="b")
    capsys.readouterr()
    assert not bases.compare(["some"])
    said = capsys.readouterr().out.splitlines()
    assert said == ["made/0: the same hashes as weights/0", "made/1: not weights/1: model"]


def test_a_device_that_is_not_here_is_refused_before_any_training(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bases", "laptop_pretrain", "--device", "cuda:99"])
    assert bases.main() == 2
    assert "make bases: device 'cuda:99'" in capsys.readouterr().err
