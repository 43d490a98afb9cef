"""The grading: samples and evidence in, `scores.json` and `items.jsonl` out. Pure; no network, no torch.

`scores.json` names who saw the pictures, what the numbers rest on, and every official aggregation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import read_json, write_json, write_lines
from reca.core.documents import fields, lines, texts
from reca.evaluation import registry
from reca.evaluation.benchmark_data import items_of, questions_of
from reca.evaluation.graded import Graded

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

SCORES, ITEMS = "scores.json", "items.jsonl"


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of JSON-lines files; ValueError names file and line."""
    return [row for path in paths for row in lines(path)]


def graded(
    benchmark: BenchmarkConfig,
    data: Mapping[str, Path],
    evidence: Sequence[Path],
    answers: Sequence[Path],
    samples: int,
) -> Graded:
    """Grade by the benchmark's own module; `benchmark.options` are its named options."""
    kind, module = registry.kind(benchmark.kind), registry.module(benchmark.kind)
    options = dict(benchmark.options)
    try:
        if kind.needs == "answer":
            asked = questions_of(benchmark, data)
            if kind.evidence == "judge":
                return module.grade(asked, _verdicts(evidence), **options)
            given = {k: v for path in answers for k, v in texts(read_json(path), path).items()}
            return module.grade(asked, given, **options)
        items = items_of(benchmark.kind, data, benchmark.prompts or benchmark.reconstructions)
        if kind.evidence == "judge":
            return module.grade(items, _verdicts(evidence), **options)
        rows = read_rows(path / "evidence.jsonl" for path in evidence)
        if kind.evidence == "similarity":
            return module.grade([i.id for i in items], rows, _features(evidence), **options)
        if kind.evidence == "vqa":
            questions = module.questions(data)
            return module.grade(items, questions, rows, samples=samples, **options)
        return module.grade(items, rows, samples=samples, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ValueError(f"benchmarks.{benchmark.kind}.options: {error}") from error
        raise


def _verdicts(evidence: Sequence[Path]) -> dict[str, tuple[str, str | None]]:
    rows = read_rows(path / "evidence.jsonl" for path in evidence)
    return {row["id"]: (row["status"], row["reply"]) for row in rows}


def _features(evidence: Sequence[Path]) -> Any:
    files = [path / "features.safetensors" for path in evidence]
    if not all(path.is_file() for path in files) or not files:
        return None
    import numpy as np
    from safetensors.numpy import load_file

    parts = [load_file(path) for path in files]
    return tuple(np.concatenate([part[name] for part in parts]) for name in ("true", "redrawn"))


def grade(
    benchmark: BenchmarkConfig,
    data: Mapping[str, Path],
    samples: Sequence[Path],
    evidence: Sequence[Path],
    out: Path,
) -> dict[str, Any]:
    """Write the scores of all shards; ValueError where shards lack, differ, or cover too little."""
    described = _one_run([read_json(path / "samples.json") for path in samples])
    answers = [path / "answers.json" for path in samples if (path / "answers.json").is_file()]
    found = graded(benchmark, data, evidence, answers, benchmark.images_per_prompt)
    cards = [path / "judge.json" for path in evidence if (path / "judge.json").is_file()]
    return write(benchmark, found, out, described, [fields(read_json(p), p) for p in cards])


def write(
    benchmark: BenchmarkConfig,
    found: Graded,
    out: Path,
    described: Mapping[str, Any],
    cards: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write `scores.json` and `items.jsonl`; the former is given back."""
    judge = cards[0]["determinants"] if cards else None
    seen_by = f"{judge['model']}@{judge['provider']}" if judge else None
    whole = not (benchmark.prompts or benchmark.questions or benchmark.reconstructions)
    result = {
        **described,
        "benchmark": benchmark.kind,
        "version": registry.module(benchmark.kind).VERSION,
        "label": registry.label(benchmark.kind, benchmark.scorer, seen_by),
        "summary": found.summary,
        "intervals": {name: list(limits) for name, limits in found.intervals.items()},
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
    """What all shards agree on; ValueError for shards of different runs or an incomplete set of them."""
    same = ["run", "split", "seed", "guidance", "seed_schedule"]
    same += ["pictures_shown"] if any("pictures_shown" in one for one in described) else []
    first = {name: described[0].get(name) for name in same}
    for one in described:
        if {name: one.get(name) for name in same} != first:
            raise ValueError(f"the shards are of different runs: {first} and {dict(one)}")
    shards = sorted(tuple(one["shard"]) for one in described)
    if shards != [(index, len(described)) for index in range(len(described))]:
        raise ValueError(f"the shards {shards} do not make a whole benchmark")
    return first
