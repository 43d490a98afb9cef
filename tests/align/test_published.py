"""Every published recipe trains at scale tiny, in its own precision and with its own checkpointing.

On the CPU autocast has CUDA's dtype, so what a recipe computes in bfloat16 is compared with the same steps in fp32.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reca.align import distributed, trainer
from reca.cli import main
from reca.config.recipe import Recipe
from reca.models.registry import runnable
from tests.align import published, test_sharded

# How far the loss of a task in one step may be from that in fp32, as a share of it: twice and more the largest
# deviation that any arm of the family has here. bfloat16 has 8 bits, so one rounding is up to 1/512.
TOLERANCE = {"showo": 0.001, "bagel": 0.002, "janus": 0.002, "openuni": 0.003, "harmon": 0.04}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> published.Rehearsal:
    return published.Rehearsal(tmp_path_factory.mktemp("published"))


def test_the_walk_leaves_no_experiment_out() -> None:
    arms = {name: published.arms(name) for name in published.EXPERIMENTS}
    assert all(arms.values()) and len(arms) >= 19
    models = [published.at_scale(name).models[model] for name in arms for model, _ in arms[name]]
    assert set(runnable()) <= {model.family for model in models}
    assert {
        model.family for model in models if model.resources.gpus > 1
    } == test_sharded.CASES.keys()


@pytest.mark.parametrize("name", published.EXPERIMENTS)
def test_a_published_recipe_trains(
    rehearsal: published.Rehearsal, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, arm in published.arms(name):
        if rehearsal.is_new(name, model, arm):
            with monkeypatch.context() as patched:
                trains(rehearsal, name, model, arm, patched)


def trains(
    rehearsal: published.Rehearsal,
    name: str,
    model: str,
    arm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = published.at_scale(name).models[model]
    seen = watched(monkeypatch)
    out = rehearsal.train(name, model, arm)
    lines = logged(out)
    drawing = "t2i" if arm == "sft" else "reca"
    expected = {drawing if task == "reca" else task for task in config.align.active()}
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss"].keys() == expected for line in lines)
    assert not any("skipped" in line for line in lines)
    # what the recipe says is what ran
    assert config.align.precision == "bf16" and seen["autocast"] == {torch.bfloat16}
    assert seen["recomputed"] == config.align.activation_checkpointing
    before, after = (load_file(at / "model.safetensors") for at in (rehearsal.base(config), out))
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed and all(after[key].isfinite().all() for key in changed)
    # and it computes what the same steps compute in fp32, without computing a block again
    seen.clear()
    seen |= {"autocast": set(), "recomputed": False}
    exact = logged(
        rehearsal.train(name, model, arm, precision="fp32", activation_checkpointing=False)
    )
    assert seen == {"autocast": set(), "recomputed": False}
    for line, reference in zip(lines, exact, strict=True):
        for task, value in reference["loss"].items():
            far = TOLERANCE[config.family]
            assert line["loss"][task] == pytest.approx(value, rel=far), (line["step"], task)
    assert lines != exact  # the two differ by their roundings alone


def logged(out: Path) -> list[dict[str, Any]]:
    """The steps that a run recorded."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the trainer switched on: autocast's types, and whether a block was computed again."""
    seen: dict[str, object] = {"autocast": set(), "recomputed": False}
    autocast, checkpoint = trainer.autocast, distributed.checkpoint

    def noted(recipe: Recipe, device: torch.device) -> torch.autocast:
        found = autocast(recipe, device)
        if found._enabled:
            seen["autocast"].add(found.fast_dtype)  # type: ignore[attr-defined]
        return found

    def again(*arguments: object, **options: object) -> object:
        seen["recomputed"] = True
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(trainer, "autocast", noted)
    monkeypatch.setattr(distributed, "checkpoint", again)
    return seen


def test_a_step_can_be_profiled(
    rehearsal: published.Rehearsal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the published recipe on the inputs of a run, and of the family's tiny model without any."""
    words, _ = rehearsal.command("paper_bagel", "bagel_7b", "reca")
    given = [w for w in words if w.startswith(("draw=", "reconstruct="))]
    inputs = ["--base", words[words.index("--model") + 1], "--cache", given[0], "--data", given[1]]
    cases = {
        "paper_bagel-tiny, models.bagel_7b": inputs,
        "paper_showo_256, models.showo_clip_256": [],
    }
    for number, (shown, more) in enumerate(cases.items()):
        trace = tmp_path / f"{number}.json"
        named = ["paper_bagel", "scale=tiny"] if more else ["paper_showo_256"]
        command = ["profile", *named, "--steps", "1", "--out", str(trace)]
        assert main([*command, *more]) == 0
        said = capsys.readouterr().out
        assert f"{shown}, arm reca: " in said
        assert ("on noise and" in said) == (not more)
        shares = [
            re.search(rf"^{part} +[0-9.]+ +([0-9.]+)%$", said, re.MULTILINE)
            for part in (*trainer.SPANS, "other")
        ]
        assert sum(float(share[1]) for share in shares if share) == pytest.approx(100, abs=0.5)
        operations = said.split("operation ")[1].split("\n\n")[0].splitlines()[1:]
        assert len(operations) == 10 and any("aten::" in line for line in operations)
        names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
        assert {trainer.SPAN + part for part in trainer.SPANS} <= names
    trace.write_text("mine")
    assert main([*command, *more]) == 2
    assert "was not written by this command" in capsys.readouterr().err


def test_out_folders_are_whole(rehearsal: published.Rehearsal) -> None:
    """The audit walks from every trained arm to its cache and base."""
    made = sorted({path.parent for path in rehearsal.root.rglob("manifest.json")})
    assert len(made) > len(runnable()) and main(["audit", *map(str, made)]) == 0
