"""observe: examine samples with a network, a judge or the toy world's examiner."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reca.commands.code import stage_code
from reca.commands.inputs import pairs, read_section, records_of, roles, work_folder
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import Stage


def observe(arguments: Namespace) -> None:
    """Observe the samples of one shard; writes `evidence.jsonl`."""
    sources = pairs("--source", arguments.source)
    observe_stage(
        arguments,
        read_section(arguments.section),
        Path(arguments.samples),
        sources,
        Path(arguments.ledger),
    )


def observe_stage(
    places: Namespace,
    plain: Mapping[str, Any],
    samples: Path,
    sources: Mapping[str, Path],
    ledger: Path,
    *,
    again: bool = True,
) -> None:
    """Write the evidence to `places.out`; without `again`, evidence that is up to date is kept."""
    from reca.evaluation.observe import observe as look
    from reca.evaluation.observe import view_of

    benchmark = section(BenchmarkConfig, plain)
    read = {"samples": samples, **roles(sources)}
    code = stage_code("observe", benchmark=benchmark.kind)
    everything = [*read.values(), ledger]  # must not be overwritten: replies are paid for
    stage = Stage(
        "observe",
        places.out,
        inputs=records_of(read),
        section=plain,
        code=code,
        reads=everything,
        former=("examine",),
    )
    if not again and stage.is_current():
        return
    with work_folder(places, "observe", everything) as work, stage:
        files = {"work": work.path, "out": stage.staging, "ledger": ledger}
        stage.note(**look(view_of(benchmark, samples, sources, **files, code=code)))
