"""Observation: a network, a judge or the toy world's examiner examines samples and writes `evidence.jsonl`.

Each row is saved to the work folder as soon as it is known, so an interrupted run resumes at the next image. Scoring
reads the rows and needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import read_json, write_json
from reca.core.documents import texts
from reca.evaluation import registry
from reca.evaluation.benchmark_data import edit_sources, items_of, questions_of
from reca.evaluation.files import ANSWERS, IMAGES, SCORER
from reca.evaluation.observers.view import View
from reca.evaluation.pictures import Cropped, of_sets

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig


def view_of(
    benchmark: BenchmarkConfig,
    samples: Path,
    data: Mapping[str, Path],
    *,
    work: Path,
    out: Path,
    ledger: Path,
    code: str = "",
) -> View:
    """The samples of one shard to observe; `samples` is an output folder of `sample`, `code` observes them."""
    kind, answers = registry.kind(benchmark.kind), samples / ANSWERS
    view = View(benchmark, [], {}, data, benchmark.images_per_prompt, work, out, ledger, code=code)
    if not kind.images:
        said = texts(read_json(answers), answers)
        return replace(view, asked=questions_of(benchmark, data), answers=said)
    view = replace(view, pictures=of_sets([samples / IMAGES]))
    if kind.toyworld:
        return view
    there = {name for name, _ in view.pictures}
    items = [item for item in items_of(benchmark.kind, data) if item.id in there]
    return replace(view, items=items, sources=sources_of(benchmark.kind, items, data))


def sources_of(kind: str, items: Sequence[Any], data: Mapping[str, Path]) -> dict[str, bytes]:
    """The images to edit or to reconstruct, by prompt id; empty for other benchmarks."""
    if {"edit", "reconstruct"}.isdisjoint(registry.kind(kind).needs):
        return {}
    return edit_sources(kind, items, data)


def observe(view: View) -> dict[str, Any]:
    """Write `evidence.jsonl` (and the ledger of a judge) to `view.out`; returns facts for the record.

    ValueError if a network's folder or the judge is missing, or nothing observes this benchmark.
    """
    kind = view.benchmark.kind
    module = registry.observer(kind)
    if module is None:
        raise ValueError(
            f"{kind}: answers are scored directly, without observation; run `reca score`"
        )
    view.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    if view.benchmark.crop_black:
        if not registry.kind(kind).images or "reconstruct" in registry.kind(kind).needs:
            raise ValueError(
                f"benchmarks.{kind}.crop_black: there are no generated images to crop; unset it"
            )
        cropped = Cropped(view.pictures)
        view = replace(view, pictures=cropped, benchmark=replace(view.benchmark, crop_black=False))
    facts |= import_module(module).observe(view)
    if scorer := registry.scorer(kind, view.benchmark.scorer):
        write_json(view.out / SCORER, {"scorer": scorer})
    return facts | ({"cropped": len(cropped.changed)} if isinstance(view.pictures, Cropped) else {})
