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


def columns(path: Path) -> list[str]:
    """The column names of a parquet table; ValueError for a file that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_schema(path).names
    except (
        OSError,
        ValueError,
        pa.ArrowException,
    ) as error:  # ValueError: names that are not UTF-8
        said = str(error).splitlines()[0]
        raise ValueError(f"{path}: no parquet table ({said}); fetch its source again") from error
    return names


def demand_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """ValueError naming the file, the columns that lack and those that are there."""
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise ValueError(
            f"{path}: has no column {', '.join(lacking)}; expected {', '.join(needed)}, found "
            f"{', '.join(found) or 'none'}; fetch the pinned revision of its source"
        )


def hub_rows(
    folder: Path, name: str, needed: Sequence[str], only: str = ""
) -> Iterator[dict[str, Any]]:
    """Rows of the parquet tables below a folder, in order of names, without their pictures.

    `only` keeps tables whose column names (`question`) or path hold it. ValueError where nothing is found, or
    a table lacks a column of `needed`.
    """
    import pyarrow.parquet as pq

    tables = sorted(Path(folder).rglob("*.parquet"))
    seen, passed = False, ""
    for path in tables:
        names = columns(path)
        if only and only not in names and only not in path.relative_to(folder).as_posix():
            passed = (
                passed or f" with {only!r} in its columns or path; {path} has {', '.join(names)}"
            )
            continue
        seen = True
        demand_columns(path, names, needed)
        kept = [name for name in names if not _PICTURE.fullmatch(name)]
        yield from pq.read_table(path, columns=kept).to_pylist()
    if not seen:
        raise ValueError(f"{folder}: no parquet tables of {name} here{passed}; fetch its source")


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
