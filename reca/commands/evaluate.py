"""generate, score, choose, report: the stages that make numbers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from reca.commands.code import stage_code
from reca.commands.inputs import of_section, read_section, records_of, work_folder
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig, Experiment, Sampler
from reca.core.artifacts import (
    MANIFEST,
    RUN,
    Stage,
    read_json,
    read_manifest,
    sha256_json,
    write_json,
)
from reca.core.documents import fields, read_yaml
from reca.evaluation.choose import arm_of
from reca.evaluation.choose import choose as choose_guidance

SCORES = "scores.json"
LAPTOP = ("laptop", "laptop_edit")  # benchmarks with stages of their own: generate and score


def generate(arguments: Namespace) -> None:
    """Draw one benchmark's images, and answer its questions, with one model."""
    (described,) = of_section(read_section(arguments.section), "benchmark")
    if described.get("kind") not in LAPTOP:
        from reca.commands import benchmark as paper

        return paper.draw(arguments)
    return _generate_laptop(arguments)


def _generate_laptop(arguments: Namespace) -> None:
    from reca.core.devices import placed
    from reca.evaluation.sample_toyworld import make_samples
    from reca.inference.generate import Origin
    from reca.models.registry import load_model

    plain = read_section(arguments.section)
    family, drawn, run, described = of_section(plain, "family", "sampler", "run", "benchmark")
    benchmark, sampler = section(BenchmarkConfig, described), section(Sampler, drawn)
    model, code = Path(arguments.model), stage_code("generate", family, benchmark.kind)
    read = {"model": model}
    if arguments.guidance:
        read["guidance"] = Path(arguments.guidance).parent
    stage = Stage(
        "generate",
        arguments.out,
        inputs=records_of(read),
        section={**plain, "split": arguments.split},
        seed=arguments.seed,
        code=code,
    )
    with work_folder(arguments, "generate", read.values()) as work, stage:
        origin = Origin(
            sha256_json(read_manifest(model)["outputs"]), benchmark.kind, arguments.seed, code
        )
        counts = make_samples(
            placed(load_model(model), arguments.device),
            benchmark,
            sampler,
            origin,
            run=run,
            split=arguments.split,
            guidance=_guidance(arguments.guidance, run, sampler),
            work=work.path,
            out=stage.staging,
        )
        stage.note(**counts)


def _guidance(file: str | None, run: str, sampler: Sampler) -> list[float] | dict[str, float]:
    """The levels of the configuration, or what was chosen for the arm of this run."""
    if file is None:
        return sampler.guidance
    chosen, arm = fields(read_json(file), file, chosen=dict)["chosen"], arm_of(run)
    if arm not in chosen:
        raise ValueError(f"{file}: no guidance chosen for arm {arm!r}; it has {sorted(chosen)}")
    return chosen[arm]


def score(arguments: Namespace) -> None:
    """Score anybody's folder (`reca score geneval FOLDER`), or a run of the workflow (`--section --samples`)."""
    from reca.commands import benchmark as paper
    from reca.evaluation.score_toyworld import score as score_samples

    if arguments.benchmark is not None:
        if arguments.folder is None or arguments.section or arguments.samples:
            raise ValueError("write `reca score BENCHMARK FOLDER`, without --section and --samples")
        return paper.score_folder(arguments)
    if not (arguments.section and arguments.samples and arguments.out):
        raise ValueError(
            "write `reca score BENCHMARK FOLDER` to score a folder of pictures, or --section, --samples "
            "and --out as the workflow does"
        )
    plain = read_section(arguments.section)
    benchmark = section(BenchmarkConfig, plain)
    if benchmark.kind not in LAPTOP:
        return paper.grade(arguments)
    samples = Path(arguments.samples[0])
    code = stage_code("score", benchmark=benchmark.kind)
    inputs = records_of({"samples": samples})
    with Stage("score", arguments.out, inputs=inputs, section=plain, code=code) as stage:
        score_samples(benchmark, samples, stage.staging)


def choose(arguments: Namespace) -> None:
    """Choose guidance on development scores; FILE lies in a folder of its own, which becomes a stage."""
    folders = [Path(folder) for folder in arguments.scores]
    inputs = records_of({str(folder): folder for folder in folders})
    out, code = Path(arguments.out), stage_code("choose")
    if out.parent == Path("."):
        raise ValueError(f"--out {out}: name a file in a folder of its own, it becomes a stage")
    if out.name in (MANIFEST, RUN):
        raise ValueError(f"--out {out}: the stage's own record has this name; name another file")
    with Stage("choose", out.parent, inputs=inputs, section={}, code=code) as stage:
        chosen = choose_guidance(_development(folder / SCORES) for folder in folders)
        write_json(stage.staging / out.name, chosen)


def _development(path: Path) -> dict[str, Any]:
    return fields(read_json(path), path, run=str, split=str, guidance=dict)


def report(arguments: Namespace) -> None:
    """Write the page, and the numbers in it as `outcomes.json`."""
    from reca.config.compose import resolved
    from reca.report import page

    experiment, results = _experiment(arguments.experiment), Path(arguments.results)
    plain = {"experiment": experiment.name}
    inputs = records_of(_scored(results))
    code = stage_code("report")
    with Stage("report", arguments.out, inputs=inputs, section=plain, code=code) as stage:
        if any(benchmark.kind == "laptop" for benchmark in experiment.benchmarks.values()):
            page.build(resolved(experiment), results, stage.staging)
        else:  # the paper's benchmarks: its tables are the page
            from reca.report import paper

            expect = {experiment.name: resolved(experiment)["expect"]}
            paper.build(results, stage.staging, experiment.title, expect)
            (stage.staging / paper.TABLES).rename(stage.staging / page.OUTCOMES)


def _experiment(name: str) -> Experiment:
    """An experiment by name, or from the resolved YAML that `reca compose` wrote."""
    from reca.config import compose

    if not name.endswith((".yaml", ".yml")):
        return compose.load(name)
    return compose.section(Experiment, fields(read_yaml(name), name))


def _scored(results: Path) -> dict[str, Path]:
    """Every scores folder and every choice of guidance below `results`, by relative path."""
    folders = [path.parent for path in results.rglob(SCORES)]
    folders += [path.parent for path in results.glob("*/guidance/manifest.json")]
    return {str(folder.relative_to(results)): folder for folder in sorted(folders)}
