"""Bit-exact resume (R1), signals (R4), refusal of another run's checkpoint (R6)."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from reca.align import checkpoint
from reca.align.distributed import ProcessGroup
from reca.align.preemption import REQUEUE_EXIT_CODE
from reca.align.trainer import CHECKPOINTS, run_identity
from reca.config.recipe import TaskRecipe
from tests.align import runs
from tests.align.runs import STEPS, assert_same_run, run
from tests.align.toy import Toy, toy_data


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    model, summary = run(folder)
    assert summary.steps == STEPS and summary.resumed_from == 0
    return folder, model


def lines(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_three_sessions_equal_one(straight, tmp_path):
    for end, resumed in ((3, 0), (10, 3), (STEPS, 10)):
        model, summary = run(tmp_path, stop_at=end)
        assert summary.resumed_from == resumed
    assert_same_run(straight[0], tmp_path)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(straight[1].named_parameters())[name]), name


# Each step reads `draw` rows 4 times (reca and t2i, twice). Kills: first and second micro-batch of a step.
@pytest.mark.parametrize("reads", [4 * 12 + 1, 4 * 13 + 4])
def test_killed_run_continues_bit_for_bit(straight, tmp_path, reads):
    child = runs.start(runs.run_until_killed, tmp_path, reads)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert (
        len(lines(tmp_path)) == (reads - 1) // 4
    )  # logged steps beyond the checkpoint are done again
    _, summary = run(tmp_path)
    assert summary.resumed_from == 10
    assert_same_run(straight[0], tmp_path)


def test_killed_at_random_times(straight, tmp_path, campaign):
    """Six kills of one run, which then ends like an uninterrupted run; many runs in the full campaign."""
    for number, chosen in enumerate(campaign.draws(1, full=15)):
        folder = tmp_path / str(number)
        for _ in range(6):
            before = checkpoint.latest(folder / CHECKPOINTS).step
            child = runs.start(runs.run_all, folder, {"checkpoint_every": 1})
            wait_for_lines(folder, before + 2, child)
            time.sleep(chosen.uniform(0, 0.05))
            child.kill()
            child.join(60)
            found = checkpoint.latest(folder / CHECKPOINTS)
            assert found.path is not None and found.step >= before and not found.broken
            campaign.count(child.exitcode == -signal.SIGKILL)
        run(folder, changes={"checkpoint_every": 1})
        assert_same_run(straight[0], folder)


def wait_for_lines(folder, count, child) -> None:
    wait_for(lambda: len(lines(folder)) >= count or not child.is_alive())


def wait_for(holds, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], REQUEUE_EXIT_CODE),
        ([signal.SIGUSR1], REQUEUE_EXIT_CODE),
        ([signal.SIGUSR2], REQUEUE_EXIT_CODE),
        ([signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM], REQUEUE_EXIT_CODE),
        ([signal.SIGINT], 130),  # Ctrl-C: a person stopped it, so nothing is to start it again
    ],
)
def test_signal_saves_and_asks_for_requeue(tmp_path, signals, code):
    steps = 2000  # far more than the time until the signal allows
    child = runs.start(runs.run_all, tmp_path, {"steps": steps, "checkpoint_every": 0})
    wait_for(lambda: len(lines(tmp_path)) >= 2)
    for number in signals:
        os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == code
    found = checkpoint.latest(tmp_path / CHECKPOINTS)
    assert found.step == len(lines(tmp_path)) < steps and not found.broken  # no step is wasted
    _, summary = run(tmp_path, changes={"steps": steps}, stop_at=found.step + 1)
    assert summary.resumed_from == found.step


def test_a_full_work_folder_is_found_before_the_first_step(tmp_path, monkeypatch):
    """Room for all checkpoints that a run will keep, and for the one that is being written."""
    run(tmp_path / "first", changes={"steps": 6, "checkpoint_every": 2, "keep": 1})
    saved = checkpoint.latest(tmp_path / "first" / CHECKPOINTS).path
    size = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
    usage = SimpleNamespace(free=size // 2)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        ValueError, match=r"checkpoints: cannot write \d+ bytes of checkpoints"
    ) as caught:
        run(tmp_path / "second", changes={"steps": 6, "checkpoint_every": 2, "keep": 1})
    needed = int(str(caught.value).split("write ")[1].split()[0])
    assert needed <= 2 * size < 2.5 * needed  # headers of the files are not counted
    assert not (tmp_path / "second/log.jsonl").exists()


def test_a_fused_optimizer_resumes_bit_for_bit(tmp_path, monkeypatch):
    """As on a GPU, where its step counter lies with the weights."""
    monkeypatch.setattr("reca.align.state.fuses", lambda weights: True)
    for name, ends in (("straight", [4]), ("cut", [2, 4])):
        for end in ends:
            run(tmp_path / name, changes={"steps": 4, "checkpoint_every": 2}, stop_at=end)
    assert_same_run(tmp_path / "straight", tmp_path / "cut")


def test_handlers_are_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, changes={"steps": 1})
    assert signal.getsignal(signal.SIGTERM) is before


def other_data():
    return replace(toy_data(), prompts=["another prompt"])


CHANGES = {
    "seed": {"seed": 9},
    "recipe.lr": {"changes": {"lr": 3e-2}},
    "recipe.betas": {"changes": {"betas": [0.9, 0.95]}},
    "recipe.tasks.i2t.batch": {
        "changes": {"tasks": {**runs.recipe().tasks, "i2t": TaskRecipe(1.0, 4)}}
    },
    "data": {"data": other_data()},
    "model": {"model": Toy(seed=1)},
    "given.cache": {"identity": {"cache": "other"}},
}


@pytest.mark.parametrize("field", CHANGES)
def test_resume_of_another_run_is_refused_by_field(tmp_path, field):
    run(tmp_path, stop_at=1, identity={"cache": "one"})
    changed = {"identity": {"cache": "one"}} | CHANGES[field]
    with pytest.raises(
        ValueError, match=rf"another configuration or code:\n  {field}: .* -> .*\nrestore"
    ):
        run(tmp_path, stop_at=2, **changed)
    assert checkpoint.latest(tmp_path / CHECKPOINTS).step == 1


def test_allowed_and_harmless_changes_resume(tmp_path):
    run(tmp_path, stop_at=1)
    changes = {"lr": 3e-2, "keep": 7, "checkpoint_every": 3, "nonfinite": "skip"}
    _, summary = run(tmp_path, stop_at=2, changes=changes, allow=["recipe.lr", "given.code"])
    assert summary.resumed_from == 1 and summary.allowed == ["recipe.lr"]
    _, summary = run(tmp_path, changes=changes)  # as the checkpoint now: the change is still known
    assert summary.resumed_from == 2 and summary.allowed == ["recipe.lr"]


def test_a_checkpoint_beyond_the_last_step_is_not_the_result(tmp_path):
    """Allowed or not: its weights had more steps, on another schedule."""
    run(tmp_path, stop_at=4)
    with pytest.raises(ValueError, match=r"step-0000000004: is beyond align\.steps = 2"):
        run(tmp_path, changes={"steps": 2}, allow=["recipe.steps"])
    assert checkpoint.latest(tmp_path / CHECKPOINTS).step == 4


def test_a_finished_run_is_not_trained_again(straight):
    before = (straight[0] / "log.jsonl").read_bytes()
    model, summary = run(straight[0])
    assert summary.resumed_from == STEPS
    assert summary.loss == json.loads(before.splitlines()[-1])["loss"]
    assert (straight[0] / "log.jsonl").read_bytes() == before
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(straight[1].named_parameters())[name]), name


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with (
        checkpoint.exclusive(tmp_path),
        pytest.raises(ValueError, match="another process is training here"),
    ):
        run(tmp_path, stop_at=1)


def test_fields_that_came_later_and_change_nothing_are_no_part_of_a_runs_identity():
    """Else no run that began before an upgrade could go on after it."""

    def told(**changes):
        given = {"seed": 0, "processes": ProcessGroup(), "given": None}
        return run_identity(Toy(), toy_data(), runs.recipe(**changes), **given)["recipe"]

    assert not {"compile", "ablation"} & told().keys()
    changed = {"compile": True, "ablation": "template_only"}
    assert changed.items() <= told(**changed).items()
