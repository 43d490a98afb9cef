"""score, choose: numbers from samples and evidence, and the guidance that development scores choose."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.commands.code import stage_code
from reca.commands.inputs import pairs, read_section, records_of, roles
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import MANIFEST, RUN, Stage, read_json, write_json
from reca.core.documents import fields
from reca.evaluation.choose import choose as choose_guidance
from reca.evaluation.files import SCORES, SWEEP


def score(arguments: Namespace) -> None:
    """Score anybody's folder (`reca score geneval FOLDER`), or a run of the workflow (`--section --samples`)."""
    if arguments.benchmark is not None:
        from reca.commands.score_folder import score_folder

        if arguments.folder is None or arguments.section or arguments.samples:
            raise ValueError("write `reca score BENCHMARK FOLDER`, without --section and --samples")
        return score_folder(arguments)
    if not (arguments.section and arguments.samples and arguments.out):
        raise ValueError(
            "write `reca score BENCHMARK FOLDER` to score a folder of pictures, or --section, --samples "
            "and --out as the workflow does"
        )
    score_stage(
        arguments.out,
        read_section(arguments.section),
        [Path(folder) for folder in arguments.samples],
        [Path(folder) for folder in arguments.evidence or ()],
        pairs("--source", arguments.source),
    )


def score_stage(
    out: str | Path,
    plain: Mapping[str, Any],
    samples: Sequence[Path],
    evidence: Sequence[Path],
    sources: Mapping[str, Path],
    *,
    again: bool = True,
) -> None:
    """Score all shards of one run; without `again`, current scores that are there already stay."""
    benchmark = section(BenchmarkConfig, plain)
    read = {str(folder): folder for folder in (*samples, *evidence)} | roles(sources)
    stage = Stage(
        "score",
        out,
        inputs=records_of(read),
        section=plain,
        code=stage_code("score", benchmark=benchmark.kind),
        reads=read.values(),
        former=("grade",),
    )
    if not again and stage.is_current():
        return
    from reca.evaluation.score import score as score_run

    with stage:
        found = score_run(benchmark, sources, samples, evidence, stage.staging)
        stage.note(coverage=found["coverage"]["share"])


def choose(arguments: Namespace) -> None:
    """Choose guidance on development scores; FILE lies in a folder of its own, which becomes a stage.

    The choice alone is in FILE, the scores that it rests on next to it: sampling depends on the choice.
    """
    folders = [Path(folder) for folder in arguments.scores]
    inputs = records_of({str(folder): folder for folder in folders})
    out, code = Path(arguments.out), stage_code("choose")
    if out.parent == Path("."):
        raise ValueError(f"--out {out}: name a file in a folder of its own, it becomes a stage")
    if out.name in (MANIFEST, RUN, SWEEP):
        raise ValueError(f"--out {out}: the stage's own record has this name; name another file")
    with Stage("choose", out.parent, inputs=inputs, section={}, code=code) as stage:
        chosen = choose_guidance(development(folder / SCORES) for folder in folders)
        write_json(stage.staging / out.name, {"chosen": chosen["chosen"]})
        write_json(stage.staging / SWEEP, {"sweep": chosen["sweep"]})


def development(path: Path) -> dict[str, Any]:
    """A `scores.json` to choose guidance by; ValueError names the file and the key that is missing or odd."""
    return fields(read_json(path), path, run=str, split=str, by_guidance=dict)
