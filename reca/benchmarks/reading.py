"""What all understanding benchmarks share: rows of a hub data set, and which questions were answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.benchmarks.graded import Coverage, coverage_of
from reca.benchmarks.items import Question

# columns with pixels, never read for the questions
_PICTURE = re.compile(r"image|image_\d+|decoded_image")


def hub_rows(folder: Path, name: str, only: str = "") -> Iterator[dict[str, Any]]:
    """Rows of the parquet tables below a folder, in order of names, without their pictures.

    `only` keeps tables whose column names (`question`) or path hold it. ValueError where nothing is found.
    """
    import pyarrow.parquet as pq

    tables = sorted(Path(folder).rglob("*.parquet"))
    seen = False
    for path in tables:
        names = pq.read_schema(path).names
        if only and only not in names and only not in path.relative_to(folder).as_posix():
            continue
        seen = True
        columns = [name for name in names if not _PICTURE.fullmatch(name)]
        yield from pq.read_table(path, columns=columns).to_pylist()
    if not seen:
        raise ValueError(f"{folder}: no parquet tables of {name} here; fetch its source")


def answered(
    benchmark: str, asked: Sequence[Question], answers: Mapping[str, str], partial: bool
) -> tuple[Coverage, list[tuple[Question, str]]]:
    """Coverage, and each answered question with its reply; an empty reply is a reply. ValueError unless whole."""
    unknown = sorted(set(answers) - {question.id for question in asked})
    if unknown:
        raise ValueError(
            f"{benchmark}: {len(unknown)} answers to questions that were not asked, for instance "
            f"{unknown[0]}; the question ids of the answers must match"
        )
    statuses = [(q.id, "scored" if q.id in answers else "missing") for q in asked]
    coverage = coverage_of(statuses)
    coverage.demand(benchmark, partial)
    return coverage, [(q, answers[q.id]) for q in asked if q.id in answers]
