"""evaluate: sample, observe and score the toy world's benchmarks of some runs on one split, in one process.

Each stage writes its own folder and manifest, like the three separate commands. A stage that is up to date is skipped:
after an edit of a scorer only scoring runs, without loading a model. An interrupted process resumes within its stage.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca.commands.inputs import pairs, read_section
from reca.commands.observe import observe_stage
from reca.commands.sample import ModelFolder, Request, sample_stage
from reca.commands.score import score_stage
from reca.core.artifacts import read_manifest
from reca.core.documents import fields
from reca.evaluation import registry


@dataclass(frozen=True)
class Evaluation:
    """One benchmark of one run, with the configuration of its stages and its model."""

    run: str
    benchmark: str
    stages: Mapping[str, Any]
    model: ModelFolder


def evaluate(arguments: Namespace) -> None:
    """Write `<out>/<run>/<benchmark>/<split>/{samples,evidence,scores}` for every run and benchmark of the section."""
    models = pairs("--model", arguments.model)
    loaded = {path: ModelFolder(path, arguments.device) for path in models.values()}
    runs = {run: loaded[path] for run, path in models.items()}
    guidance = Path(arguments.guidance) if arguments.guidance else None
    evaluations = list(_evaluations(read_section(arguments.section), runs))
    for one in evaluations:
        _evaluate(arguments, one, Request(_seed(one.run), arguments.split, guidance))
    if arguments.work:
        with suppress(OSError):  # keep the folder if it has other files
            Path(arguments.work).rmdir()


def _evaluations(
    plain: Mapping[str, Any], models: Mapping[str, ModelFolder]
) -> Iterator[Evaluation]:
    """The evaluations in the section; ValueError, before any work starts, if one cannot run."""
    for run, benchmarks in plain.items():
        if run not in models:
            raise ValueError(f"--model: no folder for run {run!r}; give --model {run}=DIR")
        _seed(run)
        read_manifest(models[run].path)
        for name, stages in fields(benchmarks, f"--section: {run}").items():
            where = f"--section: {run}.{name}"
            parts = fields(stages, where, sample=dict, observe=dict, score=dict)
            described = parts["score"]
            kind = fields(described, f"{where}.score", kind=str)["kind"]
            if not registry.kind(kind).toyworld:
                raise ValueError(
                    f"{where}: {kind} is sampled and observed in shards; use `reca sample`, `reca observe` and "
                    "`reca score`"
                )
            yield Evaluation(run, name, parts, models[run])


def _seed(run: str) -> int:
    """The seed in a run's name: 2 for `reca-2`."""
    ending = run.rpartition("-")[2]
    if not ending.isdecimal():
        raise ValueError(f"--section: run {run!r}: must end in its seed, as in reca-0")
    return int(ending)


def _evaluate(arguments: Namespace, one: Evaluation, request: Request) -> None:
    sampled, observed, scored = (one.stages[name] for name in ("sample", "observe", "score"))
    place = Path(arguments.out) / one.run / one.benchmark / request.split
    samples, evidence = place / "samples", place / "evidence"

    def places(out: Path) -> Namespace:
        work = arguments.work and Path(arguments.work) / f"{one.run}-{one.benchmark}-{out.name}"
        return Namespace(out=out, work=work)

    sample_stage(places(samples), sampled, one.model, request, again=False)
    ledger = place / "ledger.jsonl"  # unused: the examiner is not a judge
    observe_stage(places(evidence), observed, samples, {}, ledger, again=False)
    score_stage(place / "scores", scored, [samples], [evidence], {}, again=False)
