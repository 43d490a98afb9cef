"""Runs told apart without a clock, on a made-up /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from reca.core import processes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A /proc in which this process is 41 and began at tick 700; the folder of a workflow."""

    def process(pid, state="S", started=700):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True, exist_ok=True)
        after = [state, *["0"] * 18, str(started)]
        (tmp_path / "proc" / str(pid) / "stat").write_text(f"{pid} (a) b) {' '.join(after)} 0")

    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").touch()
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("first-boot\n")
    monkeypatch.setattr(processes, "PROC", tmp_path / "proc")
    monkeypatch.setattr(os, "getpid", lambda: 41)
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "here")
    process(41)
    monkeypatch.chdir(tmp_path)
    processes.MARKS.mkdir(parents=True)
    processes.LOCKS.mkdir()
    return process


def test_a_step_of_the_clock_ends_no_run(machine, monkeypatch):
    machine(50, started=900)
    run = replace(processes.this_run(), pid="50", started="900")
    monkeypatch.setattr(psutil, "boot_time", lambda: 1e9)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 2e9)
    assert run.is_over() is False
    assert processes.Run.of_mark(run.mark) == run


def test_a_process_that_ended_or_gave_its_id_to_another_is_over(machine):
    machine(50, started=900)
    machine(51, state="Z", started=900)
    (free,) = (pid for pid in (2**22 + 1,) if not psutil.pid_exists(pid))
    here = processes.this_run()
    assert replace(here, pid="50", started="899").is_over() is True
    assert replace(here, pid=str(free), started="900").is_over() is True


def test_a_zombie_is_over(machine, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda pid, signal: None)
    machine(51, state="Z", started=900)
    assert replace(processes.this_run(), pid="51", started="900").is_over() is True


def test_a_process_that_is_hidden_from_this_user_is_not_taken_for_dead(machine, monkeypatch):
    def refuse(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert replace(processes.this_run(), pid="60", started="900").is_over() is False


def test_a_machine_that_booted_since_has_no_earlier_run(machine):
    assert replace(processes.this_run(), boot="earlier-boot").is_over() is True


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "there", "boot": "other"}, {"host": "there", "space": "7"}, {"space": "7"}],
    ids=["another machine", "another container", "a container of the same name"],
)
def test_a_run_that_cannot_be_seen_from_here_stays_and_the_lock_says_so(machine, elsewhere):
    mark = replace(processes.this_run(), pid="60", **elsewhere).mark
    (processes.MARKS / mark).touch()
    processes.recover()
    assert (processes.MARKS / mark).exists() and processes.LOCKS.is_dir()
    said = processes.why_locked()
    assert "(process 60) has locked" in said and "rm -r .snakemake/runs .snakemake/locks" in said
    assert "\n" not in said


def test_a_mark_of_an_earlier_version_stays(machine):
    (processes.MARKS / "here:41:1700000000.5").touch()
    processes.recover()
    assert "the run here:41:1700000000.5 has locked" in processes.why_locked()


def test_the_lock_of_a_living_run_names_its_process(machine):
    machine(50, started=900)
    (processes.MARKS / replace(processes.this_run(), pid="50", started="900").mark).touch()
    with processes.marked():
        assert "process 50 of this machine runs the workflow" in processes.why_locked()
    assert len(list(processes.MARKS.iterdir())) == 1  # its own mark is gone, the other's is not


def test_what_a_killed_run_left_goes_with_its_jobs_and_lock(tmp_path, monkeypatch):
    """With real processes: the job of a dead run ends, the one that asks and other runs' jobs do not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(processes.VARIABLE, raising=False)
    dead = replace(processes.this_run(), started="1").mark
    processes.MARKS.mkdir(parents=True)
    processes.LOCKS.mkdir()
    (processes.MARKS / dead).touch()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
            env={**os.environ, processes.VARIABLE: mark}, stdout=subprocess.PIPE,
        )
        for mark in (dead, processes.this_run().mark)
    ]  # fmt: skip
    try:
        for job in jobs:
            job.stdout.readline()
        processes.recover()
        assert [psutil.pid_exists(job.pid) for job in jobs] == [False, True]
        assert not processes.LOCKS.exists() and not list(processes.MARKS.iterdir())
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
