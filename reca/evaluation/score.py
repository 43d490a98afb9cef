"""Scoring: from samples and evidence to `scores.json` and `items.jsonl`. Pure functions, without networks or torch.

`scores.json` has the same format for every benchmark: the observer, the coverage, every official aggregation by name
(`summary`), and, if guidance was swept, the means for every guidance level (`by_guidance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.config.options import check_benchmark_options
from reca.core.artifacts import read_json, write_json, write_lines
from reca.core.documents import fields, lines, texts
from reca.evaluation import registry
from reca.evaluation.benchmark_data import items_of, questions_of
from reca.evaluation.files import ANSWERS, EVIDENCE, FEATURES, ITEMS, SAMPLES, SCORES
from reca.evaluation.graded import Graded
from reca.evaluation.together import cards_of, demand_together, scorer_of

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of JSON-lines files; ValueError names the file and line of a bad row."""
    return [row for path in paths for row in lines(path)]


def graded(
    benchmark: BenchmarkConfig,
    data: Mapping[str, Path],
    evidence: Sequence[Path],
    answers: Sequence[Path],
    samples: int,
    sampled: Mapping[str, Any] | None = None,
) -> Graded:
    """Grade with the benchmark's module; `benchmark.options` are keyword arguments of its `grade`.

    `samples`: images per prompt; `sampled`: the contents of `samples.json`, for benchmarks of the toy world.
    ValueError for an unknown option, or a value that it does not take.
    """
    check_benchmark_options(benchmark.kind, benchmark.options)
    kind, module = registry.kind(benchmark.kind), registry.module(benchmark.kind)
    options = dict(benchmark.options)
    rows = read_rows(path / EVIDENCE for path in evidence if kind.evidence != "judge")
    given = {k: v for path in answers for k, v in texts(read_json(path), path).items()}
    if kind.toyworld:
        return module.grade(benchmark, sampled, rows, given, **options)
    if not kind.images:
        asked = questions_of(benchmark, data)
        replies = _verdicts(evidence) if kind.evidence == "judge" else given
        return module.grade(asked, replies, **options)
    items = items_of(benchmark.kind, data, benchmark.prompts or benchmark.reconstructions)
    if kind.evidence == "judge":
        return module.grade(items, _verdicts(evidence), **options)
    if kind.evidence == "similarity":
        return module.grade([i.id for i in items], rows, _features(evidence), **options)
    if kind.evidence == "vqa":
        return module.grade(items, module.questions(data), rows, samples=samples, **options)
    return module.grade(items, rows, samples=samples, **options)


def _verdicts(evidence: Sequence[Path]) -> dict[str, tuple[str, str | None]]:
    rows = read_rows(path / EVIDENCE for path in evidence)
    return {row["id"]: (row["status"], row["reply"]) for row in rows}


def _features(evidence: Sequence[Path]) -> Any:
    files = [path / FEATURES for path in evidence]
    if not all(path.is_file() for path in files) or not files:
        return None
    import numpy as np
    from safetensors.numpy import load_file

    parts = [load_file(path) for path in files]
    return tuple(np.concatenate([part[name] for part in parts]) for name in ("true", "redrawn"))


def score(
    benchmark: BenchmarkConfig,
    data: Mapping[str, Path],
    samples: Sequence[Path],
    evidence: Sequence[Path],
    out: Path,
) -> dict[str, Any]:
    """Write the scores of all shards.

    ValueError if shards are missing or of different runs, models or judges, if evidence is of other samples, or if
    coverage is too low.
    """
    described = _one_run([read_samples(path) for path in samples])
    demand_together(samples, evidence)
    cards = cards_of(evidence)
    benchmark = replace(benchmark, scorer=scorer_of(evidence, benchmark.scorer))
    answers = [path / ANSWERS for path in samples if (path / ANSWERS).is_file()]
    found = graded(benchmark, data, evidence, answers, benchmark.images_per_prompt, described)
    return write(benchmark, found, out, described, cards)


def read_samples(folder: Path) -> dict[str, Any]:
    """The contents of `samples.json`; ValueError names the file and the missing or invalid key."""
    path = folder / SAMPLES
    return fields(read_json(path), path, run=str, split=str, guidance=list, shard=list)


def write(
    benchmark: BenchmarkConfig,
    found: Graded,
    out: Path,
    described: Mapping[str, Any],
    cards: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write `scores.json` and `items.jsonl`; returns the contents of the former."""
    judge = cards[0]["determinants"] if cards else None
    seen_by = f"{judge['model']}@{judge['provider']}" if judge else None
    toyworld = registry.kind(
        benchmark.kind
    ).toyworld  # its configured sizes define the complete benchmark
    whole = toyworld or not (benchmark.prompts or benchmark.questions or benchmark.reconstructions)
    result = {
        **described,
        "benchmark": benchmark.kind,
        "version": registry.module(benchmark.kind).VERSION,
        "label": registry.label(benchmark.kind, benchmark.scorer, seen_by),
        "summary": found.summary,
        "intervals": {name: list(limits) for name, limits in found.intervals.items()},
        "by_guidance": found.by_guidance,
        "coverage": found.coverage.plain(),
        "readings": {kind: {"count": len(ids), "ids": ids} for kind, ids in found.readings.items()},
        "partial": not (found.coverage.complete and (whole or benchmark.kind == "reconstruction")),
        "notes": found.notes | ({"crop_black": True} if benchmark.crop_black else {}),
        "judge": {"determinants": judge, "totals": [card["totals"] for card in cards]}
        if judge
        else None,
    }
    write_json(out / SCORES, result)
    write_lines(out / ITEMS, found.items)
    return result


def _one_run(described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The description that all shards share; ValueError for shards of different runs, or if shards are missing."""
    same = ["run", "split", "seed", "guidance", "chosen", "seed_schedule"]
    same += ["pictures_shown"] if any("pictures_shown" in one for one in described) else []
    first = {name: described[0].get(name) for name in same}
    for one in described:
        if {name: one.get(name) for name in same} != first:
            raise ValueError(
                f"the shards are of different runs: {first} and {dict(one)}; give the shards of one run"
            )
    shards = sorted(tuple(one["shard"]) for one in described)
    if shards != [(index, len(described)) for index in range(len(described))]:
        raise ValueError(f"shards {shards} are not a complete set; give every shard once")
    return first
