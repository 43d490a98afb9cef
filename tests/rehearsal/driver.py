"""The rehearsal itself: pin, then per experiment check, difference, run and audit, then the paper's tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reca.config.scale import label
from reca.config.schema import Experiment
from reca.core.artifacts import read_json, write_json
from reca.sources.catalogue import SOURCES_FILE, load_sources
from reca.sources.fetch import LOCK_FILE
from tests.rehearsal import first_run, plan
from tests.rehearsal.servers import Servers
from tests.rehearsal.usage import Used, used
from tests.rehearsal.workspace import Workspace

SUMMARY = Path("summary")
STATE = SUMMARY / "state.json"
TABLES = SUMMARY / "tables"
DONE = re.compile(r"^(\d+) of (\d+) steps \(100%\) done", re.MULTILINE)
STAGES = {"samples": "sample", "evidence": "observe", "scores": "score"}
TAIL = 15  # lines of a failed command that are shown


class Failed(Exception):
    """A command of the rehearsal failed; the text says which, where its output is, and its last lines."""


@dataclass
class Outcome:
    """An experiment's runs, all tries together."""

    jobs: int = 0
    seconds: float = 0.0
    # of all its processes and the checks beside them, but for Slurm's, which are not below this one
    cpu: float = 0.0
    audit: str = ""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Rehearsal:
    """One working folder with its servers."""

    space: Workspace
    servers: Servers
    scale: str
    profile: tuple[str, ...] = ()

    def run(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Rehearse the experiments, in order of dependency; returns the summary."""
        started = time.monotonic()
        experiments = plan.chosen(wanted, self.scale, self.space.root / "config")
        done = self.state()
        page = first_run.experiment()
        if page in experiments and page not in done:
            done[page] = self.first_run(page)
            self.keep(done)
        self.pin(plan.sources(experiments))
        width = max(map(len, experiments))
        beside = ThreadPoolExecutor(1, thread_name_prefix="checks")
        try:
            # a check reads the configuration alone, on a core that the tail of a run leaves idle
            ahead = {
                name: beside.submit(self.check, one)
                for name, one in experiments.items()
                if not plan.starts(one)
            }
            for number, (name, experiment) in enumerate(experiments.items(), 1):
                if name in ahead:
                    ahead[name].result()
                else:  # whose base is the result of a run before this one
                    self.check(experiment)
                done[name] = now = self.experiment(experiment, done.get(name, Outcome()))
                self.keep(done)
                took = f"{now.jobs:4d} jobs {now.seconds:6.0f} s"
                took += "" if self.profile else f" ({now.cpu:.0f} s of CPU)"
                say(f"[{number}/{len(experiments)}] {name:<{width}} {took}   audit: {now.audit}")
        finally:
            beside.shutdown(cancel_futures=True)
        outcomes = {name: done[name] for name in experiments}
        summary = summed(outcomes) | {"tables": self.tables(experiments)}
        summary["seconds"] = round(time.monotonic() - started, 1)
        summary["refused_hosts"] = sorted(self.servers.web.refused)
        return summary

    def state(self) -> dict[str, Outcome]:
        """What earlier tries in this folder did."""
        path = self.space.root / STATE
        known = read_json(path) if path.is_file() else {}
        return {name: Outcome(**fields) for name, fields in known.items()}

    def keep(self, done: Mapping[str, Outcome]) -> None:
        write_json(self.space.root / STATE, {name: asdict(one) for name, one in done.items()})

    # ---- steps ---------------------------------------------------------------------------------
    def pin(self, sources: set[str]) -> None:
        """Pin what is not pinned yet: from the mirror folder what has no address, else from hub and web."""
        known = load_sources(self.space.root / SOURCES_FILE)
        missing = self.space.unpinned(sources)
        alone = [name for name in missing if known[name].kind == "mirror"]
        addressed = [name for name in missing if name not in alone]
        if addressed:
            self.command("pin", "reca", "pin", *addressed)
        if alone:
            mirror = f"--mirror={self.servers.mirror}"
            self.command("pin-mirror", "reca", "pin", *alone, mirror)
        say(f"{len(sources)} sources in {LOCK_FILE}, {len(missing)} of them pinned now")

    def first_run(self, name: str) -> Outcome:
        """The commands of docs/first_run.md, which pin for themselves, on nothing; Failed at a fault."""
        (self.space.root / LOCK_FILE).unlink(missing_ok=True)
        found = f"{name}-{self.scale}"
        for folder in ("results", "work"):
            shutil.rmtree(self.space.root / folder / found, ignore_errors=True)
        outcome = Outcome()
        commands = first_run.run(self.space, self.scale, slurm=bool(self.profile))
        for number, (step, spent, wrong) in enumerate(commands):
            log, at = first_run.log_of(self.space, number), f"docs/first_run.md:{step.line}"
            if wrong:
                raise Failed(f"{at}: {step.command}: {wrong}\nall output: {log}")
            say(f"{at:<22} {spent.seconds:6.1f} s   {step.command.splitlines()[0]}")
            if jobs := jobs_of(log.read_text()):
                outcome = Outcome(jobs, round(spent.seconds, 1), round(spent.cpu, 1))
        return outcome

    def check(self, experiment: Experiment) -> None:
        """Check an experiment and write its difference to the published one."""
        name = label(experiment)
        self.command(f"{name}-check", "reca", "check", name)
        difference = self.command(f"{name}-diff", "reca", "compose", name, "--diff")
        (self.space.root / SUMMARY / f"{name}.diff").write_text(difference)

    def experiment(self, experiment: Experiment, before: Outcome) -> Outcome:
        """Run a checked experiment and audit it."""
        name = label(experiment)
        with used() as spent:
            jobs = jobs_of(self.command(name, *self.snakemake(name)))
        now = spent if jobs else Used()
        audit = self.command(f"{name}-audit", "reca", "audit", plan.results_of(experiment))
        return Outcome(
            before.jobs + jobs,
            round(before.seconds + now.seconds, 1),
            round(before.cpu + now.cpu, 1),
            audit.splitlines()[-1],
            self.stages(name),
        )

    def snakemake(self, name: str) -> list[str]:
        options = self.profile or ("--cores", "all")
        return ["snakemake", *options, "--config", f"experiment={name}"]

    def tables(self, experiments: Mapping[str, Experiment]) -> dict[str, Any]:
        """The paper's tables over all results; Failed if a cell that an experiment has scores for stays empty."""
        options = ("--results", "results", "--scale", self.scale, "--out", str(TABLES))
        self.command("paper", "reca", "paper", *options)
        made = read_json(self.space.root / TABLES / "tables.json")
        expected = read_json(self.space.root / TABLES / "expectations.json")["expectations"]
        mine = [one for one in expected if one["experiment"] in experiments]
        missing = [one for one in mine if not self.has_scores(one)]
        if missing:
            raise Failed(f"reca paper: no scores of {json.dumps(missing[0])}")
        return {"cells": made["cells"], "expectations_with_scores": len(mine)}

    def has_scores(self, expectation: Mapping[str, Any]) -> bool:
        benchmark = str(expectation["metric"]).split(".")[0]
        folder = f"{expectation['experiment']}-{self.scale}/{expectation['model']}"
        runs = (self.space.root / "results" / folder).glob(f"{expectation['arm']}-*")
        return all((run / benchmark / "test/scores/manifest.json").is_file() for run in runs)

    def command(self, log: str, *words: str) -> str:
        """Run a command; Failed if its exit status is not 0."""
        done = self.space.run(*words, log=log)
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-TAIL:])
            raise Failed(f"{' '.join(words)}: exit status {done.returncode}\n{tail}\n"
                         f"all output: {self.space.log(log)}")  # fmt: skip
        return done.stdout

    def stages(self, name: str) -> dict[str, dict[str, float]]:
        """Jobs and their seconds by stage, from Snakemake's own measurements."""
        found: dict[str, Counter[str]] = {}
        for path in (self.space.root / "benchmarks" / name).rglob("*.tsv"):
            counted = found.setdefault(stage_of(path.stem), Counter())
            counted.update({"jobs": 1, **measured(path)})
        return {stage: rounded(counted) for stage, counted in sorted(found.items())}


def jobs_of(said: str) -> int:
    """The number of jobs that Snakemake says it has done; 0 where there was nothing to be done."""
    found = DONE.findall(said)
    return int(found[-1][1]) if found else 0


def measured(path: Path) -> dict[str, Any]:
    """Seconds of a job."""
    with path.open() as file:
        return {"seconds": float(next(csv.DictReader(file, delimiter="\t"))["s"])}


def rounded(counted: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 1) for key, value in counted.items()}


def stage_of(stem: str) -> str:
    """The stage that a file of measurements is of, by the names in `workflow/rules/`."""
    last = stem.rpartition("-")[2]
    if last in STAGES:
        return STAGES[last]
    first = stem.partition("-")[0]
    return first if first in ("base", "cache", "report", "paper") else "align"


def summed(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Totals, by stage and by experiment."""
    stages: dict[str, Counter[str]] = {}
    for one in outcomes.values():
        for stage, counted in one.stages.items():
            stages.setdefault(stage, Counter()).update(counted)
    slowest = sorted(stages.items(), key=lambda item: -item[1]["seconds"])
    return {
        "experiments": {name: asdict(one) for name, one in outcomes.items()},
        "jobs": sum(one.jobs for one in outcomes.values()),
        "run_seconds": round(sum(one.seconds for one in outcomes.values()), 1),
        "cpu_seconds": round(sum(one.cpu for one in outcomes.values()), 1),
        "stages": {stage: rounded(counted) for stage, counted in slowest},
    }


def say(line: str) -> None:
    print(line, flush=True)
