"""A stage of every rule killed by SIGKILL, the driver too: the next run ends with the hashes of an undisturbed one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from reca.sources.catalogue import SOURCES_FILE
from tests.rehearsal import plan
from tests.rehearsal.driver import Failed, Rehearsal, say
from tests.rehearsal.workspace import Workspace

# Verbs of the rules, and whether Snakemake is killed with the stage: it is retried in one half, resumed in the other.
# The jobs of a dead Snakemake live on until the next run ends them.
RULES = {
    "fetch": False,
    "base": True,
    "cache": False,
    "align": True,
    "sample": False,
    "observe": True,
    "score": False,
    "report": True,
}
EXPERIMENT = "paper_showo_vq"  # has every rule, detectors and a judge
POLL = 0.02
SHARE = 0.6  # of a stage's usual seconds, after which it is killed
FETCH = 0.8  # seconds; downloads are not among an experiment's measurements


@dataclass(frozen=True)
class Kill:
    """A stage that was killed: its rule, seconds after its start, and whether Snakemake died with it."""

    rule: str
    after: float
    driver_too: bool


def rehearsed(rehearsal: Rehearsal, name: str = EXPERIMENT) -> dict[str, Any]:
    """Kill a stage of each rule in a folder of its own; Failed unless all ends as in the undisturbed folder."""
    straight = rehearsal.space
    rehearsal.run([name])
    disturbed = begun_anew(straight.root / "faults", straight)
    experiments = plan.chosen([name], rehearsal.scale, straight.root / "config")
    replace(rehearsal, space=disturbed).pin(plan.sources(experiments))
    labelled = f"{name}-{rehearsal.scale}"
    command = rehearsal.snakemake(labelled)
    usual = {rule: s["seconds"] / s["jobs"] for rule, s in rehearsal.stages(labelled).items()}
    asked = len(rehearsal.servers.judge.asked)
    kills = killed_everywhere(disturbed, command, {"fetch": FETCH, **usual})
    done = disturbed.run(*command, log=labelled)
    differ = differences(straight, disturbed, labelled)
    missed = sorted(RULES.keys() - {kill.rule for kill in kills})
    paid = len(rehearsal.servers.judge.asked) - asked
    said = f"{len(kills)} of {len(RULES)} rules killed, {len(differ)} stages differ"
    if done.returncode or differ or missed:
        raise Failed(f"kills, {name}: exit status {done.returncode}; {said}; {missed} {differ[:3]}")
    say(f"kills, {name}: {said}, {paid} requests to the judge")
    return {"experiment": name, "stages_that_differ": len(differ), "judge_requests": paid,
            "killed": [asdict(kill) for kill in kills]}  # fmt: skip


def killed_everywhere(
    space: Workspace, command: Sequence[str], usual: Mapping[str, float]
) -> list[Kill]:
    """Run the workflow until one stage of each rule has been killed, or it ends; starts it anew after its own death."""
    kills: list[Kill] = []
    for attempt in range(1 + sum(RULES.values())):
        log = space.log(f"kills-{attempt}")
        with (
            log.open("w") as file,
            subprocess.Popen(
                command, cwd=space.root, env=space.environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            ) as driver,
        ):  # fmt: skip
            while driver.poll() is None:
                time.sleep(POLL)
                todo = RULES.keys() - {kill.rule for kill in kills}
                if not (kill := _killed(driver.pid, todo, usual)):
                    continue
                kills.append(kill)
                if kill.driver_too:
                    driver.kill()
                    break
            else:
                return kills
    return kills


def _killed(driver: int, rules: set[str], usual: Mapping[str, float]) -> Kill | None:
    """Kill the first stage below the driver that is of one of the rules; None if there is none or it ended first."""
    found = _stage(driver, rules)
    if found is None:
        return None
    rule, stage = found
    with contextlib.suppress(psutil.NoSuchProcess):
        after = SHARE * usual[rule]
        with contextlib.suppress(psutil.TimeoutExpired):
            stage.wait(max(0.0, after - (time.time() - stage.create_time())))
            return None
        for process in (stage, *stage.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return Kill(rule, round(time.time() - stage.create_time(), 2), RULES[rule])
    return None


def _stage(driver: int, rules: set[str]) -> tuple[str, psutil.Process] | None:
    """A running command below the driver, and its rule."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                verbs = {verb for word, verb in pairwise(words) if word == "reca"} & rules
                if words and "python" in words[0] and verbs:
                    return verbs.pop(), process
    return None


def differences(straight: Workspace, disturbed: Workspace, experiment: str) -> list[str]:
    """Stages whose outputs differ between two folders."""
    one, other = straight.hashes(experiment), disturbed.hashes(experiment)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def begun_anew(root: Path, other: Workspace) -> Workspace:
    """A second working folder with the same servers, in which nothing is pinned yet."""
    shutil.rmtree(root, ignore_errors=True)
    space = Workspace.made(root)
    shutil.copy(other.root / SOURCES_FILE, space.root / SOURCES_FILE)
    space.variables = dict(other.variables)
    return space
