"""`make gpu-check` without a GPU: a dry run of every stage, its limits, what it prints and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from perf import gpu_check


def test_a_dry_run_of_what_runs_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--stages", "edges", "overflow", "bench", "align", "--out", str(tmp_path)]
    assert gpu_check.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    outcomes = {stage["stage"]: stage["outcome"] for stage in found["stages"]}
    assert outcomes == {
        "edges": "passed",
        "overflow": "passed",
        "bench": "passed",
        "align": "skipped",
    }
    names = [row["name"] for stage in found["stages"] for row in stage["rows"]]
    assert all(name in said for name in names) and len(names) > 15
    assert "tiny T=96 H=2 K=1 E=16: reca torch" in names
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["seed"] == 0


def test_a_stage_that_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); time.sleep(60)"
    row = json.dumps({"name": "found before"}) + "\n"
    hanging = [sys.executable, "-c", code, str(tmp_path / "bench.jsonl"), row]
    monkeypatch.setattr(gpu_check, "command", lambda *_: hanging)
    outcome = gpu_check.run_stage("bench", False, tmp_path, left=2)
    assert outcome.outcome == "out of time" and outcome.rows == [{"name": "found before"}]


def test_a_failed_row_fails_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edges.jsonl").write_text('{"name": "equal bits", "verdict": "failed"}\n')
    monkeypatch.setattr(gpu_check, "command", lambda *_: [sys.executable, "-c", "print('done')"])
    assert gpu_check.run_stage("edges", False, tmp_path, left=60).outcome == "failed"


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "missing_packages", lambda: ["pydantic"])
    outcome = gpu_check.run_stage("align", False, tmp_path, left=60)
    assert (outcome.outcome, outcome.said) == ("skipped", "not installed: pydantic")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "no CUDA device; try --dry-run" in capsys.readouterr().err


def test_the_limits_leave_six_minutes() -> None:
    assert gpu_check.TOTAL == 360 and all(limit <= 120 for limit, _ in gpu_check.STAGES.values())
