"""Runs of the workflow in a folder: which of them live, and what a killed one left.

Snakemake unlocks a folder when it ends, but not when it is killed; and the jobs of a killed run live on, writing where
the next run writes. A run therefore leaves a mark with its identity, and its jobs carry it in their environment. The
identity holds no time of day, which a step of the clock or a container with another boot time would change: the boot of
the kernel, the namespaces in which process ids and start times count, the process and its start in ticks since the
boot. Jobs on the nodes of a cluster are the scheduler's to cancel.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

from reca.worker.jobs import with_jobs

MARKS, LOCKS = Path(".snakemake/runs"), Path(".snakemake/locks")
VARIABLE = "RECA_RUN"  # in the environment of every job: the mark of its run
PROC = Path("/proc")


@dataclass(frozen=True)
class Run:
    """One process that ran the workflow; its fields joined are the name of its mark."""

    host: str
    boot: str
    space: str
    pid: str
    started: str

    @property
    def mark(self) -> str:
        """The name of the run's mark, and the value of `VARIABLE` in its jobs."""
        return ":".join(astuple(self))

    @classmethod
    def of_mark(cls, mark: str) -> Run | None:
        """The run that left a mark; None for the mark of another version of this package."""
        fields = mark.split(":")
        return cls(*fields) if len(fields) == 5 else None

    def is_over(self) -> bool | None:
        """Whether the run has ended; None if that cannot be seen from here.

        A host of the same name that has booted since is taken for the same machine.
        """
        here = this_run()
        if (self.boot, self.space) == (here.boot, here.space):
            return not _lives(int(self.pid), self.started)
        return True if self.host == here.host and self.boot != here.boot else None


def this_run() -> Run:
    """The identity of the calling process."""
    pid = os.getpid()
    return Run(socket.gethostname(), _boot(), _space(), str(pid), _start(pid) or "")


def _boot() -> str:
    """The kernel's random name of this boot; empty if there is no /proc."""
    path = PROC / "sys/kernel/random/boot_id"
    return path.read_text().strip() if path.is_file() else ""


def _space() -> str:
    """The namespaces of process ids and of the clock that start times are read in."""
    found = [PROC / "self/ns" / name for name in ("pid", "time")]
    return "-".join(str(path.stat().st_ino) for path in found if path.exists())


def _start(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None if it is gone, ended or hidden."""
    if not (
        PROC / "self"
    ).exists():  # not Linux: the time that the kernel noted, which no clock step moves
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        # the name of the program is in parentheses and may hold anything; state and start are fields 3 and 22
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _lives(pid: int, started: str) -> bool:
    found = _start(pid)
    if found is not None:
        return found == started
    try:
        os.kill(pid, 0)  # asks only whether it is there
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not (
        PROC / str(pid) / "stat"
    ).exists()  # hidden from this user; a zombie is seen, and over


# ---- marks -----------------------------------------------------------------------------------------
@contextmanager
def marked() -> Iterator[None]:
    """Mark the folder as this run's while it lasts, and make its jobs carry the mark."""
    run = this_run()
    MARKS.mkdir(parents=True, exist_ok=True)
    path = MARKS / run.mark
    path.touch()
    os.environ[VARIABLE] = run.mark
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def recover() -> None:
    """End the jobs of runs that were killed on this machine, and remove their marks and lock."""
    left = [path for path in _marks() if (run := Run.of_mark(path.name)) and run.is_over()]
    for path in left:
        _end_jobs_of(path.name)
        path.unlink(missing_ok=True)
    if left and not _marks():
        shutil.rmtree(LOCKS, ignore_errors=True)


def why_locked() -> str:
    """One line for a folder that another run has locked: whose the lock is, and what to do."""
    own = this_run().mark
    for path in _marks():
        run = Run.of_mark(path.name)
        if path.name == own:
            continue
        if run is not None and run.is_over() is False:
            return (
                f"process {run.pid} of this machine runs the workflow in {Path.cwd()}; wait for it or stop it, "
                "then start again"
            )
        who = f"a run on host {run.host} (process {run.pid})" if run else f"the run {path.name}"
        return (
            f"{who} has locked {Path.cwd()} and cannot be seen from here; if it and its jobs have ended: "
            f"rm -r {MARKS} {LOCKS}, then start again"
        )
    return f"{Path.cwd()} is locked, but no run left its mark; if none is at work: rm -r {LOCKS}, then start again"


def _marks() -> list[Path]:
    return sorted(MARKS.glob("*:*"))


def _end_jobs_of(mark: str) -> None:
    """Kill the processes that carry a mark, but for the one that asks and what started it."""
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    killed = []
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.environ().get(VARIABLE) != mark:
                continue
            for one in with_jobs([process]):
                one.kill()
                killed.append(one)
        except psutil.Error:
            continue  # gone already, or another user's
    psutil.wait_procs(killed, timeout=10)
