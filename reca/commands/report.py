"""report, paper: the report page of an experiment, and the paper's tables."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.commands.code import stage_code
from reca.commands.inputs import records_of
from reca.config.scale import label
from reca.config.schema import SCALES, Experiment
from reca.core.artifacts import Stage
from reca.core.documents import fields, read_yaml
from reca.core.structure import suggestion
from reca.evaluation.files import SCORES

if TYPE_CHECKING:
    from reca.report.runs import Runs


def report(arguments: Namespace) -> None:
    """Write the report page, and its numbers as `outcomes.json`."""
    from reca.config.compose import resolved
    from reca.report import page
    from reca.report.runs import runs_of

    experiment, results = _experiment(arguments.experiment), _results(arguments)
    plain = {"experiment": label(experiment)}
    asked = runs_of(resolved(experiment))
    inputs = records_of(_scored(results, asked))
    code = stage_code("report")
    with Stage("report", arguments.out, inputs=inputs, section=plain, code=code) as stage:
        if any(benchmark.kind == "laptop" for benchmark in experiment.benchmarks.values()):
            page.build(resolved(experiment), results, stage.staging)
        else:  # for the paper's benchmarks, its tables are the page
            from reca.report import paper

            expect = {experiment.name: resolved(experiment)["expect"]}
            runs = {experiment.name: asked}
            paper.build(results, stage.staging, experiment.title, expect, runs=runs)
            (stage.staging / paper.TABLES).rename(stage.staging / page.OUTCOMES)


def _experiment(name: str) -> Experiment:
    """An experiment by name, or from the resolved YAML written by `reca compose`."""
    from reca.config import compose

    if not name.endswith((".yaml", ".yml")):
        return compose.load(name)
    return compose.section(Experiment, fields(read_yaml(name), name))


def _results(arguments: Namespace) -> Path:
    """The folder of results; ValueError if there is none, as its tables would be full of "not run"."""
    results = Path(arguments.results)
    if not results.is_dir():
        raise ValueError(f"--results {results}: no such folder; name the folder of finished runs")
    return results


def _scored(results: Path, runs: Runs) -> dict[str, Path]:
    """All score folders of `runs` and all guidance folders below `results`, by relative path."""
    from reca.report.runs import is_expected

    parts = {path.parent: path.relative_to(results).parts for path in results.rglob(SCORES)}
    folders = [
        folder for folder, (model, *of) in parts.items() if is_expected(runs, model, *of[:1])
    ]
    folders += [path.parent for path in results.glob("*/guidance/manifest.json")]
    return {str(folder.relative_to(results)): folder for folder in sorted(folders)}


# ---- the paper's tables ------------------------------------------------------------------------------
def paper(arguments: Namespace) -> int:
    """Write all tables of the paper, with the reproduced values and whether they are as expected.

    Returns the exit status: with `--check` 3 if a number is outside the tolerance stated in its experiment, else 0.
    """
    from reca.core.artifacts import read_json
    from reca.report.expectations import OUTSIDE
    from reca.report.paper import EXPECTED, build, collect
    from reca.report.runs import is_expected, runs_of

    if arguments.scale not in (None, *SCALES):
        raise ValueError(f"--scale {arguments.scale}: {suggestion(arguments.scale, SCALES)}")
    results = _results(arguments)
    scores = collect(results, scale=arguments.scale)
    experiments = _experiments(arguments.experiment, {row["experiment"] for row in scores})
    runs = {one["name"]: runs_of(one) for one in experiments}
    scores = [
        row
        for row in scores
        if is_expected(runs.get(row["experiment"]), row["model"], f"{row['arm']}-{row['seed']}")
    ]
    if arguments.check and not scores:
        raise ValueError(
            f"--results {results}: holds no score of a test at this scale, so there is nothing to --check; name the "
            "folder of finished runs, or give --scale"
        )
    folders = {str(row["folder"]): row["folder"] for row in scores}
    expect = {one["name"]: one["expect"] for one in experiments}
    code, section_ = stage_code("paper"), {"expect": expect}
    with Stage(
        "paper", arguments.out, inputs=records_of(folders), section=section_, code=code
    ) as stage:
        cells = build(results, stage.staging, expect=expect, scale=arguments.scale, runs=runs)
        judged = read_json(stage.staging / EXPECTED)
        stage.note(cells=cells, expectations=judged["counts"])
    said = ", ".join(f"{count} {status}" for status, count in sorted(cells.items()))
    print(f"{arguments.out}/index.html: {said} ({len(scores)} scores)")
    print("expectations: " + ", ".join(f"{n} {v}" for v, n in judged["counts"].items()))
    outside = [one for one in judged["expectations"] if one["verdict"] == OUTSIDE]
    for one in outside:
        print(
            f"outside: {one['experiment']} {one['model']} {one['arm']} {one['metric']}: "
            f"{one['reproduced']['value']:.4f}, expected {one['value']} +- {one['tolerance']}"
        )
    return 3 if outside and arguments.check else 0


def _experiments(named: Sequence[str] | None, there: set[str]) -> list[dict[str, Any]]:
    """The resolved experiments that are named, else `paper` and all known ones with results."""
    from reca.config import compose

    chosen = named or sorted({"paper"} | there.intersection(compose.names()))
    return [compose.resolved(compose.load(name)) for name in chosen]
