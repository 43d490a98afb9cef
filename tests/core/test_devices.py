"""Where models run: the names of devices, and that every stage and every verb asks the one rule."""

from __future__ import annotations

import json

import pytest
import torch

from reca.align.distributed import join
from reca.cli import main
from reca.core.devices import device_of, placed
from reca.evaluation.observers import view
from tests.toy_model import DrawingToy, png


def with_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_training_and_all_else_take_the_same_device(monkeypatch, name, gpus, found):
    with_gpus(monkeypatch, gpus)
    assert str(device_of(name)) == str(join(name).device) == found


def test_networks_that_look_take_the_first_gpu(monkeypatch):
    with_gpus(monkeypatch, 3)
    assert view.device() == "cuda:0"


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("gpu", 1, "device 'gpu' is not known; choose auto, cpu, cuda or cuda:N"),
        ("cuda:", 1, "device 'cuda:' is not known"),
        ("cuda", 0, "device 'cuda': PyTorch sees no GPU here; choose cpu, or auto"),
        ("cuda:2", 2, "device 'cuda:2': PyTorch sees 2 GPUs here"),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch, name, gpus, message):
    with_gpus(monkeypatch, gpus)
    for ask in (device_of, join, lambda device: placed(DrawingToy(), device)):
        with pytest.raises(ValueError, match=message):
            ask(name)


def test_a_model_that_does_not_fit_is_one_clear_error(monkeypatch):
    with_gpus(monkeypatch, 1)

    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(DrawingToy, "to", full)
    with pytest.raises(ValueError, match=r"device cuda:0: its free memory does not hold .* GiB"):
        placed(DrawingToy(), "auto")


# ---- who asks ------------------------------------------------------------------------------------
class Placed(Exception):
    """The model was about to move."""


@pytest.fixture
def moves(monkeypatch):
    """Every place that loads a model stops where it asks for the device."""

    def stop(model, device="auto"):
        raise Placed(model, device)

    for name in (
        "reca.core.devices.placed",
        "reca.inference.interactive.placed",
        "reca.toyworld.pretrain.run.placed",
    ):
        monkeypatch.setattr(name, stop)
    for name in (
        "reca.models.registry",
        "reca.inference.interactive",
        "reca.toyworld.pretrain.run",
    ):
        monkeypatch.setattr(f"{name}.load_model", lambda folder: "the model")
    monkeypatch.setattr("reca.commands.sample.read_manifest", lambda folder: {"outputs": {}})
    monkeypatch.delenv("RECA_DEBUG", raising=False)


DRAWN = {"family": "showo", "sampler": {}, "run": "base-0"}
DATA = {"kind": "world", "world": {"images": 1}}
STAGES = {
    "cache": {"family": "showo", "data": {"reconstruct": DATA}},
    "laptop": {**DRAWN, "benchmark": {"kind": "laptop"}},
    "geneval": {**DRAWN, "benchmark": {"kind": "geneval"}},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("words", [[], ["--device", "cpu"]])
def test_stages_move_their_model(moves, tmp_path, stage, words):
    verb = [stage] if stage == "cache" else ["sample", "--seed", "0"]
    verb += ["--data", str(tmp_path), "--use", "draw"] if stage == "cache" else []
    places = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    section = ["--section", json.dumps(STAGES[stage])]
    with pytest.raises(Placed) as asked:
        main([*verb, *section, *places, "--work", str(tmp_path / "work"), *words])
    assert asked.value.args == ("the model", words[-1] if words else "auto")


def test_pretraining_encodes_where_it_trains(moves, tmp_path, monkeypatch):
    from reca.toyworld.pretrain import run

    monkeypatch.setattr(run, "_start", lambda *_: tmp_path)
    places = {"folders": {}, "parts": {}, "seed": 0, "work": tmp_path, "out": tmp_path, "code": ""}
    with pytest.raises(Placed):
        run.pretrain_base("showo", {}, {}, {}, **places)


@pytest.mark.parametrize(
    "words",
    [["draw", "x"], ["reconstruct", "p.png"], ["edit", "p.png", "x"], ["ask", "p.png", "x"]],
)
@pytest.mark.parametrize("more", [[], ["--device", "cpu"]])
def test_one_picture_at_a_time(moves, tmp_path, monkeypatch, words, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.png").write_bytes(png(1))
    with pytest.raises(Placed) as asked:
        main([*words, "--model", str(tmp_path), *more])
    assert asked.value.args == ("the model", more[-1] if more else "auto")


def test_a_wrong_device_is_told_before_a_model_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RECA_DEBUG", raising=False)
    assert main(["draw", "x", "--model", str(tmp_path), "--device", "gpu"]) == 2
    assert capsys.readouterr().err == (
        "reca draw: device 'gpu' is not known; choose auto, cpu, cuda or cuda:N\n"
    )
