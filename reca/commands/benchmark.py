"""draw, examine and grade the paper's benchmarks: the workflow's stages, and anybody's folder of images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reca.commands.code import stage_code
from reca.commands.inputs import of_section, pairs, read_section, records_of, work_folder
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig, JudgeConfig, Sampler
from reca.core.artifacts import Stage, read_manifest, sha256_json
from reca.core.documents import fields, json_object, read_json
from reca.core.ownership import WorkFolder, check_file, check_place, is_work
from reca.evaluation import readings, registry


def examination(kind: str) -> str:
    """The name in `STAGES` of the step between images and scores."""
    return "judge" if registry.kind(kind).evidence == "judge" else "examine"


def draw(arguments: Namespace) -> None:
    """Draw or answer one shard of a benchmark with one model."""
    from reca.core.devices import placed
    from reca.evaluation.sample import draw as draw_shard
    from reca.inference.generate import Origin
    from reca.models.registry import load_model

    plain = read_section(arguments.section)
    family, drawn, run, described = of_section(plain, "family", "sampler", "run", "benchmark")
    benchmark, sampler = section(BenchmarkConfig, described), section(Sampler, drawn)
    model, shard = Path(arguments.model), shard_of(arguments.shard)
    sources = pairs("--source", arguments.source)
    code = stage_code("draw", family, benchmark.kind)
    read = {"model": model, **_roles(sources)}
    stage = Stage(
        "draw",
        arguments.out,
        inputs=records_of(read),
        section={**plain, "shard": list(shard)},
        seed=arguments.seed,
        code=code,
        reads=read.values(),
    )
    with work_folder(arguments, "draw", read.values()) as work, stage:
        origin = Origin(
            sha256_json(read_manifest(model)["outputs"]),
            benchmark.kind,
            arguments.seed if benchmark.seed_schedule == "per_image" else benchmark.seed,
            code,
            benchmark.seed_schedule,
            shard,
        )
        counts = draw_shard(
            placed(load_model(model), arguments.device),
            benchmark,
            sampler,
            origin,
            sources,
            run=run,
            work=work.path,
            out=stage.staging,
        )
        stage.note(**counts)


def shard_of(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8); ValueError for anything that is no shard."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise ValueError(f"--shard {text!r}: write I/N with 0 <= I < N, for example 0/8")
    return index, count


def _roles(sources: Mapping[str, Path]) -> dict[str, Path]:
    return {f"source {role}": folder for role, folder in sources.items()}


def examine(arguments: Namespace) -> None:
    """Let networks or a judge look at one shard's samples; writes `evidence.jsonl`."""
    from reca.core.artifacts import read_json
    from reca.evaluation.benchmark_data import edit_sources, items_of, questions_of
    from reca.evaluation.observe import examine as look
    from reca.evaluation.pictures import of_sets

    benchmark = section(BenchmarkConfig, read_section(arguments.section))
    samples, sources = Path(arguments.samples), pairs("--source", arguments.source)
    kind = registry.kind(benchmark.kind)
    code = stage_code(examination(benchmark.kind), benchmark=benchmark.kind)
    read = {"samples": samples, **_roles(sources)}
    stage = Stage(
        "examine",
        arguments.out,
        inputs=records_of(read),
        section=read_section(arguments.section),
        code=code,
        reads=[*read.values(), Path(arguments.ledger)],  # replies are paid for
    )
    with work_folder(arguments, "examine", [*read.values(), Path(arguments.ledger)]) as work, stage:
        more: dict[str, Any] = {}
        items: Sequence[Any] = []
        pictures: Mapping[Any, bytes] = {}
        if kind.needs == "answer":
            more["asked"] = questions_of(benchmark, sources)
            more["answers"] = read_json(samples / "answers.json")
        else:
            pictures = of_sets([samples / "images.tar"])
            drawn = {name for name, _ in pictures}
            items = [item for item in items_of(benchmark.kind, sources) if item.id in drawn]
            if kind.needs in ("edit", "reconstruct"):
                more["sources"] = edit_sources(benchmark.kind, items, sources)
        facts = look(
            benchmark,
            items,
            pictures,
            sources,
            samples=benchmark.images_per_prompt,
            work=work.path,
            out=stage.staging,
            ledger=Path(arguments.ledger),
            **more,
        )
        stage.note(**facts)


def grade(arguments: Namespace) -> None:
    """Grade all shards of one run (the workflow's form of `score`)."""
    from reca.evaluation.grade import grade as grade_run

    plain = read_section(arguments.section)
    benchmark = section(BenchmarkConfig, plain)
    samples = [Path(folder) for folder in arguments.samples]
    evidence = [Path(folder) for folder in arguments.evidence or ()]
    sources = pairs("--source", arguments.source)
    read = {str(folder): folder for folder in (*samples, *evidence)} | _roles(sources)
    code = stage_code("grade", benchmark=benchmark.kind)
    with Stage(
        "grade",
        arguments.out,
        inputs=records_of(read),
        section=plain,
        code=code,
        reads=read.values(),
    ) as stage:
        found = grade_run(benchmark, sources, samples, evidence, stage.staging)
        stage.note(coverage=found["coverage"]["share"])


def paper(arguments: Namespace) -> int:
    """Write every table of the paper, with what of it these results reproduce and whether that was expected.

    With `--check` the status is 3 where a number lies outside the tolerance that its experiment states.
    """
    from reca.core.artifacts import read_json
    from reca.report.expectations import OUTSIDE
    from reca.report.paper import EXPECTED, build, collect

    results = Path(arguments.results)
    folders = {
        str(path.parent): path.parent for path in results.glob("**/test/scores/manifest.json")
    }
    expect = _expectations(arguments.experiment, {row["experiment"] for row in collect(results)})
    code, section_ = stage_code("paper"), {"expect": expect}
    with Stage(
        "paper", arguments.out, inputs=records_of(folders), section=section_, code=code
    ) as stage:
        cells = build(results, stage.staging, expect=expect)
        judged = read_json(stage.staging / EXPECTED)
        stage.note(cells=cells, expectations=judged["counts"])
    said = ", ".join(f"{count} {status}" for status, count in sorted(cells.items()))
    print(f"{arguments.out}/index.html: {said} ({len(collect(results))} scores)")
    print("expectations: " + ", ".join(f"{n} {v}" for v, n in judged["counts"].items()))
    outside = [one for one in judged["expectations"] if one["verdict"] == OUTSIDE]
    for one in outside:
        print(
            f"outside: {one['experiment']} {one['model']} {one['arm']} {one['metric']}: "
            f"{one['reproduced']['value']:.4f}, expected {one['value']} +- {one['tolerance']}"
        )
    return 3 if outside and arguments.check else 0


def _expectations(named: Sequence[str] | None, there: set[str]) -> dict[str, list[dict[str, Any]]]:
    """What experiments expect, by name: those named, else `paper` and the known ones that have results."""
    from dataclasses import asdict

    from reca.config import compose

    chosen = named or sorted({"paper"} | there.intersection(compose.names()))
    return {name: [asdict(one) for one in compose.load(name).expect] for name in chosen}


# ---- anybody's images ------------------------------------------------------------------------------
SOURCES = {
    "geneval": {"prompts": "geneval", "detector": "mask2former-swin-small-coco", "clip": "clip-vit-large-patch14"},
    "dpg": {"prompts": "dpg", "questions": "dpg-questions", "vqa": "blip-vqa"},
    "wise": {"prompts": "wise", "judge": "wise-judge"},
    "t2i_compbench": {"prompts": "t2i-compbench", "judge": "t2i-compbench-judge"},
    "imgedit": {"prompts": "imgedit", "images": "imgedit-images"},
    "gedit": {"prompts": "gedit-bench", "judge": "gedit-judge"},
}  # fmt: skip


def score_folder(arguments: Namespace) -> None:
    """Score anybody's folder of images in the official layout; prints the summary and what is missing.

    Names are matched strictly. `--list` only lists present and missing files. `--evidence DIR` scores what
    an earlier run saw, without networks or judges.
    """
    from reca.evaluation import pictures as found_in
    from reca.evaluation.benchmark_data import edit_sources, items_of
    from reca.evaluation.grade import graded, write
    from reca.evaluation.observe import examine as look

    kind, folder = arguments.benchmark, Path(arguments.folder)
    out = Path(arguments.out or f"{folder.name}-{kind}-scores")
    if not arguments.list:
        _check_scores(out, folder)
    if registry.kind(kind).needs not in ("draw", "edit"):
        raise ValueError(
            f"{kind}: has no layout of pictures; it scores answers (see docs/benchmarks.md)"
        )
    sources = _sources(kind, arguments)
    items, module = items_of(kind, sources), registry.module(kind)
    if hasattr(module, "check_folder"):
        module.check_folder(folder, items)
    grid = getattr(module, "grid_name", None)
    if grid and found_in.is_grid(folder, items, module.official_name, grid):
        samples = arguments.images or found_in.TILES
        pictures, missing, foreign = found_in.of_grids(folder, items, samples, grid)
        expected, files = len(items), len(items) - len(missing)
        print(f"{kind}: {files} of {expected} grids, {samples} pictures of each, in {folder}")
    else:
        samples = arguments.images or found_in.samples_in(folder, items, module.official_name)
        pictures, missing, foreign = found_in.of_folder(
            folder, items, samples, module.official_name
        )
        expected = len(items) * samples
        print(f"{kind}: {len(pictures)} of {expected} pictures ({samples} per prompt) in {folder}")
    if arguments.list:
        for name in missing:
            print(f"missing  {name}")
        for name in foreign:
            print(f"unknown  {name}")
        return
    for line in found_in.demand(folder, missing, foreign, expected, arguments.partial):
        print(line)
    benchmark = _benchmark(kind, samples, arguments)
    evidence = Path(arguments.evidence[0]) if arguments.evidence else out / "evidence"
    if not arguments.evidence:
        WorkFolder(out / "work", "score").claim()
        there = [item for item in items if any((item.id, k) in pictures for k in range(samples))]
        edits = registry.kind(kind).needs == "edit"
        look(
            benchmark,
            there,
            pictures,
            sources,
            samples=samples,
            work=out / "work",
            out=evidence,
            ledger=out / "ledger.jsonl",
            sources=edit_sources(kind, there, sources) if edits else None,
        )
    found = graded(benchmark, sources, [evidence], [], samples)
    described = {
        "run": folder.name,
        "split": "test",
        "seed": None,
        "guidance": None,
        "seed_schedule": None,
    }
    result = write(benchmark, found, out, described, _cards(evidence))
    print(summary_text(result))
    print(f"written: {out / 'scores.json'}")


def _check_scores(out: Path, folder: Path) -> None:
    """ValueError where the folder of scores is the images' own, or holds anything but an earlier run of this."""
    check_place("--out", out, [folder])
    written = {"work", "evidence", "ledger.jsonl", "items.jsonl", "scores.json"}
    for entry in sorted(out.iterdir()) if out.is_dir() else ():
        if entry.name not in written:
            raise ValueError(
                f"--out {out}: holds {entry.name}, which `reca score` did not write; name another folder"
            )
    check_file("--out", out / "scores.json", _is_scores)
    found = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if found and not (_is_scores(out / "scores.json") or is_work(out / "work")):
        raise ValueError(
            f"--out {out}: holds {found[0]} and nothing that tells it is an earlier run's; name another folder"
        )


def _is_scores(path: Path) -> bool:
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and {"coverage", "summary"} <= found.keys()


def _cards(evidence: Path) -> list[dict[str, Any]]:
    path = evidence / "judge.json"
    return [fields(read_json(path), path)] if path.is_file() else []


def _sources(kind: str, arguments: Namespace) -> dict[str, Path]:
    """Folders by role: as named, else `data/<source>` where it is there."""
    named = pairs("--source", arguments.source)
    found = {role: Path("data") / name for role, name in SOURCES[kind].items()} | named
    lacking = {r: f for r, f in found.items() if r in ("prompts", "questions") and not f.is_dir()}
    for role, folder in lacking.items():
        source = SOURCES[kind].get(role, role)
        raise ValueError(
            f"{folder}: no such folder; run `reca fetch {source} --out {folder}`, or give --source "
            f"{role}=DIR"
        )
    return found


def _benchmark(kind: str, samples: int, arguments: Namespace) -> BenchmarkConfig:
    options = json_object(arguments.options, "--options") if arguments.options else {}
    if arguments.partial:
        options["partial"] = True
    judge = section(JudgeConfig, read_section(arguments.judge)) if arguments.judge else None
    made = BenchmarkConfig(kind=kind, images_per_prompt=samples, options=options, judge=judge)  # type: ignore[arg-type]
    crop = bool(options.pop("crop_black", False))  # of the images, before anybody sees them
    return replace(made, scorer=arguments.scorer, crop_black=crop)


def summary_text(result: Mapping[str, Any]) -> str:
    """The summary as lines: coverage first, then every number with its interval."""
    cover = result["coverage"]
    lines = [f"{result['label']}, version {result['version']}"]
    said = f"coverage {cover['scored']} of {cover['expected']}"
    reasons = [
        f"{cover[n]} {n}" for n in ("missing", "failed", "refused", "unparsable") if cover[n]
    ]
    lines.append(said + (f" ({', '.join(reasons)})" if reasons else ""))
    if doubtful := readings.text(readings.counts(result)):
        lines.append(f"replies: {doubtful} (ids in scores.json, readings)")
    if result["partial"]:
        lines.append("PARTIAL: not comparable with a full run")
    for name, value in result["summary"].items():
        limits = result["intervals"].get(name)
        shown = "-" if value is None else f"{value:.4f}"
        lines.append(
            f"  {name:<32} {shown}" + (f"  [{limits[0]:.4f}, {limits[1]:.4f}]" if limits else "")
        )
    return "\n".join(lines)
