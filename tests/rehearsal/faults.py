"""A stage of every rule killed by SIGKILL, the driver too: the next run ends with the hashes of an undisturbed one."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.rehearsal.driver import Failed, Rehearsal, say
from tests.rehearsal.workspace import Workspace

# Verb of each rule of the workflow that runs a command; an alignment on several devices starts it through torchrun.
RULES = ("fetch", "base", "cache", "align", "sample", "observe", "score", "report")
EXPERIMENT = "paper_showo_vq"  # has every rule, detectors and a judge
POLL = 0.05
AFTER = 1.5  # seconds into a stage: past Python's start, before most stages end


@dataclass(frozen=True)
class Kill:
    """A killed stage: its rule, and whether Snakemake itself was killed with it."""

    rule: str
    driver_too: bool
    happened: bool


def killed_everywhere(space: Workspace, command: Sequence[str]) -> list[Kill]:
    """Run the workflow again and again, killing one stage of each rule; the last run is left alone.

    With every second rule Snakemake dies, too, so that one half of the stages is retried and the other half resumed.
    The jobs of a dead Snakemake live on until the next run ends them.
    """
    kills = []
    for number, rule in enumerate(RULES):
        driver_too = number % 2 == 1
        kills.append(Kill(rule, driver_too, _killed(space, command, rule, driver_too)))
    return kills


def _killed(space: Workspace, command: Sequence[str], rule: str, driver_too: bool) -> bool:
    """Whether a stage of the rule was seen and killed; without the driver, the run goes on to its end."""
    with (
        space.log(f"kill-{rule}").open("w") as log,
        subprocess.Popen(
            command, cwd=space.root, env=space.environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        ) as driver,
    ):  # fmt: skip
        stage = None
        while driver.poll() is None and stage is None:
            time.sleep(POLL)
            stage = _stage(driver.pid, rule)
        if stage is None:
            return False
        _wait_for_start(stage)
        family = [stage, *_children(stage)]
        if driver_too:
            driver.send_signal(signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return True


def _stage(driver: int, rule: str) -> psutil.Process | None:
    """A running command of a rule below the driver."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                if words and "python" in words[0] and ("reca", rule) in pairwise(words):
                    return process
    return None


def _wait_for_start(stage: psutil.Process) -> None:
    with contextlib.suppress(psutil.TimeoutExpired):
        stage.wait(AFTER)


def _children(stage: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(stage.children(recursive=True))
    return []


def rehearsed(rehearsal: Rehearsal, name: str = EXPERIMENT) -> dict[str, Any]:
    """Kill a stage of each rule in a folder of its own; Failed unless all ends as in the undisturbed folder."""
    straight = rehearsal.space
    rehearsal.run([name])
    disturbed = begun_anew(straight.root / "faults", straight)
    labelled = f"{name}-{rehearsal.scale}"
    command = rehearsal.snakemake(labelled)
    asked = len(rehearsal.servers.judge.asked)
    kills = killed_everywhere(disturbed, command)
    done = disturbed.run(*command, log=labelled)
    differ = differences(straight, disturbed, labelled)
    missed = [kill.rule for kill in kills if not kill.happened]
    paid = len(rehearsal.servers.judge.asked) - asked
    hit = f"{len(kills) - len(missed)} of {len(kills)} rules killed"
    said = f"{hit}, {len(differ)} stages differ, {paid} judge requests"
    say(f"kills, {name}: {said}")
    if done.returncode or differ or missed:
        raise Failed(f"kills, {name}: exit status {done.returncode}; {said}; {missed} {differ[:3]}")
    return {
        "experiment": name,
        "kills": [asdict(kill) for kill in kills],
        "judge_requests": paid,
        "stages_that_differ": 0,
    }


def differences(straight: Workspace, disturbed: Workspace, experiment: str) -> list[str]:
    """Stages whose outputs differ between two folders."""
    one, other = straight.hashes(experiment), disturbed.hashes(experiment)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def begun_anew(root: Path, pinned: Workspace) -> Workspace:
    """A second working folder with the same pins and servers, and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    space = Workspace.made(root)
    for name in ("sources.lock", "sources.yaml"):
        shutil.copy(pinned.root / "config" / name, space.root / "config" / name)
    space.variables = dict(pinned.variables)
    return space
