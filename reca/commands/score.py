"""score, choose: scores from samples and evidence, and guidance from development scores."""

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
    """Score a folder of images (`reca score geneval FOLDER`), or a run of the workflow (`--section --samples`)."""
    if arguments.benchmark is not None:
        from reca.commands.score_folder import score_folder

        if arguments.folder is None and not (arguments.section or arguments.samples):
            raise ValueError(
                f"`reca score {arguments.benchmark}`: FOLDER is missing; name the folder of images"
            )
        if arguments.folder is None or arguments.section or arguments.samples:
            raise ValueError("use `reca score BENCHMARK FOLDER` without --section and --samples")
        return score_folder(arguments)
    if not (arguments.section and arguments.samples and arguments.out):
        raise ValueError(
            "use `reca score BENCHMARK FOLDER` to score a folder of images, or give --section, --samples "
            "and --out like the workflow does"
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
    """Score all shards of one run; without `again`, scores that are up to date are kept."""
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
    """Choose guidance by development scores; FILE is written to a separate folder, which becomes a stage.

    FILE has only the choice, on which sampling depends; the underlying scores are in a second file next to it.
    """
    folders = [Path(folder) for folder in arguments.scores]
    inputs = records_of({str(folder): folder for folder in folders})
    out, code = Path(arguments.out), stage_code("choose")
    if out.parent == Path("."):
        raise ValueError(f"--out {out}: give a file in a separate folder, which becomes a stage")
    if out.name in (MANIFEST, RUN, SWEEP):
        raise ValueError(f"--out {out}: this name is reserved for the manifest; give another file")
    with Stage("choose", out.parent, inputs=inputs, section={}, code=code) as stage:
        chosen = choose_guidance(development(folder / SCORES) for folder in folders)
        write_json(stage.staging / out.name, {name: chosen[name] for name in ("chosen", "levels")})
        write_json(stage.staging / SWEEP, {"sweep": chosen["sweep"]})


def development(path: Path) -> dict[str, Any]:
    """A `scores.json` to choose guidance by; ValueError names the file and the missing or invalid key."""
    return fields(read_json(path), path, run=str, split=str, by_guidance=dict)
