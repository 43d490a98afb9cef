"""`make gpu-check` without a GPU: a dry run of every stage, its limits, what it prints and writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from perf import gpu_check
from perf.gpu import runs
from reca.config.compose import load
from reca.models.registry import runnable


def test_a_dry_run_of_what_runs_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ["edges", "graphs", "far_heads", "bench_losses", "bench_attention", "align_janus"]
    words = ["--dry-run", "--out", str(tmp_path), "--stages", *stages]
    assert gpu_check.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    outcomes = {stage["stage"]: stage["outcome"] for stage in found["stages"]}
    assert outcomes == {**dict.fromkeys(stages[:-1], "passed"), "align_janus": "skipped"}
    names = [row["name"] for stage in found["stages"] for row in stage["rows"]]
    assert all(name in said for name in names) and len(names) > 15
    assert "tiny T=96 H=2 K=1 E=16: reca torch" in names
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["seed"] == 0


def test_a_stage_that_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a process that it started, which would disturb the times."""
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[2]).write_text(str(child.pid))\n"
        "pathlib.Path(sys.argv[1]).write_text(sys.argv[3]); time.sleep(60)"
    )
    rows, child = tmp_path / "rows.jsonl", tmp_path / "child"
    row = json.dumps({"stage": "edges", "name": "found before"}) + "\n"
    hanging = [sys.executable, "-c", code, str(rows), str(child), row]
    monkeypatch.setattr(gpu_check, "command", lambda *_: hanging)
    outcome = gpu_check.run_stage("edges", False, rows, left=6)
    assert outcome.outcome == "out of time" and outcome.rows == [{"name": "found before"}]
    status = Path(f"/proc/{child.read_text()}/stat")
    for _ in range(100):  # on a busy machine a killed process lives on for a moment
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the stage still runs")


def test_a_failed_row_fails_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"stage": "edges", "name": "equal bits", "verdict": "failed"}\n')
    monkeypatch.setattr(gpu_check, "command", lambda *_: [sys.executable, "-c", "print('done')"])
    assert gpu_check.run_stage("edges", False, rows, left=60).outcome == "failed"
    assert gpu_check.run_stage("graphs", False, rows, left=60).outcome == "passed"


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "missing_packages", lambda: ["pydantic"])
    outcome = gpu_check.run_stage("align_bagel", False, tmp_path, left=60)
    assert (outcome.outcome, outcome.said) == ("skipped", "not installed: pydantic")


def test_checks_run_side_by_side_and_times_are_taken_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: set[str] = set()
    beside: dict[str, set[str]] = {}

    def run_stage(stage: str, dry: bool, rows: Path, left: float) -> gpu_check.Outcome:
        running.add(stage)
        time.sleep(0.2)
        beside[stage] = running - {stage}
        running.remove(stage)
        return gpu_check.Outcome(stage, "passed")

    monkeypatch.setattr(gpu_check, "run_stage", run_stage)
    check = gpu_check.Check(tmp_path, dry=False)
    check.run(["bench_losses", "edges", "graphs"])
    assert beside["edges"] | beside["graphs"] and beside["bench_losses"] == set()
    found = json.loads(check.result.read_text())
    assert {stage["stage"] for stage in found["stages"]} == {"edges", "graphs", "bench_losses"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "no CUDA device; try --dry-run" in capsys.readouterr().err


def test_the_limits_leave_six_minutes() -> None:
    together = max(stage.limit for stage in gpu_check.STAGES.values() if not stage.alone)
    alone = sum(stage.limit for stage in gpu_check.STAGES.values() if stage.alone)
    assert together + alone <= gpu_check.TOTAL == 360


def test_every_family_is_aligned() -> None:
    assert set(gpu_check.FAMILIES) == set(runs.EXPERIMENTS) == set(runnable())
    for name, model in runs.EXPERIMENTS.values():
        experiment = load(name, ["scale=tiny"])
        assert model in experiment.models and "reca" in experiment.arms
