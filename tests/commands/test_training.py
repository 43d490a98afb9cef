"""What verbs refuse to read, what the records of training say, and when unfinished work goes on."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from reca.cli import main
from reca.config.schema import DataSource
from reca.core.artifacts import read_json, read_manifest
from reca.core.ownership import WorkFolder
from reca.data.prompts import bank
from reca.models.registry import build_model
from reca.toyworld.pretrain.words import build_tokenizer
from tests.commands.test_stages import DATA, RECIPE, chain, inside, network, run

__all__ = ["chain", "inside"]  # fixtures

FIT = {"steps": 2, "batch": 4, "lr": 1e-3}


def align(
    out, *more, recipe=RECIPE, model="base", draw="cache/draw", source=DATA, data="data/world"
):
    """Exit status of one alignment."""
    section = {"family": "showo", "align": recipe, "data": {"reconstruct": source, "answer": DATA}}
    words = ["align", "--section", json.dumps(section), "--model", model, "--arm", "reca"]
    words += ["--data", f"reconstruct={data}", "--data", "answer=data/world"]
    words += ["--cache", f"draw={draw}", "--cache", "read=cache/read", "--seed", "0"]
    return main([*words, "--work", f"work/{out}", "--out", out, *more])


def pretrain(**changes):
    section = {"family": "showo", "network": network(), "fit": FIT | changes}
    words = ["pretrain", "tokenizer", "--section", json.dumps(section), "--seed", "0"]
    words += ["--data", "reconstruct=data/world", "--work", "work/part", "--out", "part"]
    return main(words)


@pytest.fixture
def stopped():
    """Ends a stage after its work, before its output is complete."""

    def stop(*_):
        raise ValueError("stopped")

    patch = pytest.MonkeyPatch()
    patch.setattr("reca.core.artifacts.Stage._commit", stop)
    yield patch
    patch.undo()


def test_a_cache_for_another_use_is_refused(inside, capsys):
    assert align("misused", draw="cache/read") == 2
    said = capsys.readouterr().err
    assert "cache/read: has images for use 'read', not 'draw'; give the cache of this use" in said


def test_a_cache_of_another_model_is_refused(inside, capsys):
    torch.manual_seed(1)
    other = build_model("showo", network())
    build_tokenizer(bank("laptop")).save_pretrained("words")
    other.read_tokenizer(inside / "words")
    other.save(inside / "other/base")
    assert align("foreign", model="other/base") == 2
    assert "cache/draw: made by a different encoder than this model's" in capsys.readouterr().err


def test_what_a_users_folder_says_is_in_the_record(inside):
    """A folder without a manifest: two runs on other captions have other records, on equal ones the same."""
    (inside / "mine").mkdir()
    source = asdict(DataSource(kind="folder", options={"caption": "txt"}))
    for number in range(3):
        colour = (80 * number, 0, 0)
        Image.new("RGB", (16, 16), colour).save(inside / f"mine/{number}.png")
        (inside / f"mine/{number}.txt").write_text("a red circle")
    section = {"family": "showo", "data": {"reconstruct": source}}
    run(
        "cache",
        section=section,
        model="base",
        data="mine",
        use="draw",
        work="work/mine",
        out="mine_cache",
    )
    tasks = RECIPE["tasks"] | {"t2i": {"batch": 2}}
    options = {
        "recipe": RECIPE | {"tasks": tasks},
        "draw": "mine_cache",
        "source": source,
        "data": "mine",
    }
    records = []
    for caption in ("a red circle", "a red circle", "a blue circle"):
        (inside / "mine/1.txt").write_text(caption)
        assert align(f"mine_{len(records)}", **options) == 0
        records.append(read_manifest(f"mine_{len(records)}"))
    assert [record["data"] == records[0]["data"] for record in records] == [True, True, False]
    assert records[0]["inputs"] == records[2]["inputs"]
    assert "data" not in read_manifest("reca/seed-0") and "ranks" not in records[0]


def test_a_file_of_prompts_is_an_input(inside):
    recipe = RECIPE | {"prompts": "file", "prompts_file": "prompts.txt"}
    hashes = []
    for prompt in bank("laptop")[:2]:
        (inside / "prompts.txt").write_text(prompt + "\n")
        assert align(f"prompted_{len(hashes)}", recipe=recipe) == 0
        hashes.append(read_manifest(f"prompted_{len(hashes)}")["inputs"]["prompts"]["sha256"])
    assert hashes[0] != hashes[1]


def test_other_code_does_not_go_on_with_a_run(inside, stopped, monkeypatch, capsys):
    assert align("cut") == 2
    stopped.undo()
    monkeypatch.setattr("reca.commands.train.stage_code", lambda *_: "other")
    capsys.readouterr()
    assert align("cut") == 2
    said = capsys.readouterr().err
    assert "given.code: " in said and "-> 'other'" in said
    assert "remove work/cut and start again" in said and "--allow FIELD" in said
    assert align("cut", "--allow", "given.code") == 0
    assert read_manifest("cut")["code"] == "other"
    assert read_json("cut/run.json")["allowed"] == ["given.code"]
    assert read_json("cut/run.json")["resumed_from"] == 2


def test_a_part_is_trained_again_where_anything_changed(inside):
    assert pretrain() == 0
    assert not (inside / "work/part").exists()
    first = read_manifest("part")["outputs"]
    assert pretrain(steps=3) == 0
    assert read_manifest("part")["outputs"] != first


def test_unfinished_parts_go_on_only_as_they_began(inside, stopped, monkeypatch, capsys):
    assert pretrain(lr=2e-3) == 2
    log = inside / "work/part/log.jsonl"
    before = log.read_bytes()
    assert pretrain(lr=1e-3) == 2
    said = capsys.readouterr().err
    assert "work/part/stage.json: belongs to a run with another configuration or code:" in said
    assert "section.fit.lr: 0.002 -> 0.001" in said and "remove work/part" in said
    with monkeypatch.context() as patch:
        patch.setattr("reca.commands.train.stage_code", lambda *_: "other")
        assert pretrain(lr=2e-3) == 2
    assert "code: " in capsys.readouterr().err and log.read_bytes() == before
    stopped.undo()
    assert pretrain(lr=2e-3, checkpoint_every=1) == 0
    assert not (inside / "work/part").exists()


def test_work_without_a_record_of_its_inputs_is_refused(inside, stopped, capsys):
    """Older versions wrote no such record."""
    assert pretrain() == 2
    (inside / "work/part/stage.json").unlink()
    stopped.undo()
    capsys.readouterr()
    assert pretrain() == 2
    assert (
        "work/part: holds unfinished work without an intact stage.json" in capsys.readouterr().err
    )
    assert (inside / "work/part/log.jsonl").is_file()
    shutil.rmtree(inside / "work/part")


def test_a_killed_write_of_the_record_stops_nobody(inside):
    """What a killed writer leaves has the name of `reca.core.atomic`; no step had been trained."""
    work = inside / "work/part"
    WorkFolder(work, "pretrain tokenizer").claim()
    (work / ".stage.json.0123456789abcdef").write_text("{")
    assert pretrain() == 0
    assert not work.exists()


def test_a_corrected_value_is_accepted_where_nothing_was_trained(inside, monkeypatch, capsys):
    assert pretrain(lr="fast") == 2
    assert "lr" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("reca.toyworld.pretrain.run.pretrain_part", _failing)
        assert pretrain(lr=2e-3) == 2
    assert (inside / "work/part/stage.json").is_file()
    assert pretrain(lr=1e-3) == 0


def _failing(*_, **__):
    raise ValueError("failed before the first step")


def test_a_part_of_an_evaluation_that_is_no_object_is_named(inside, capsys):
    parts = {"sample": 5, "observe": {"kind": "laptop"}, "score": {"kind": "laptop"}}
    words = [
        "--section",
        json.dumps({"reca-0": {"laptop": parts}}),
        "--model",
        "reca-0=reca/seed-0",
    ]
    assert main(["evaluate", *words, "--split", "development", "--out", "x"]) == 2
    said = "reca evaluate: --section: reca-0.laptop: sample is a number, not an object\n"
    assert capsys.readouterr().err == said
