"""What the benchmarks share: rows of a Hub data set, checks of their cells, and the coverage of answers."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca.core.documents import kind_of, read_text
from reca.core.numbered import incomplete
from reca.core.walk import entries
from reca.evaluation.graded import Coverage, coverage_of
from reca.inference.items import Question

_PICTURE = re.compile(r"image|image_\d+|decoded_image")  # image columns, not needed for questions


def columns(path: Path) -> list[str]:
    """The column names of a parquet table; ValueError if the file is not one."""
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
        raise ValueError(f"{path}: not a parquet table ({said}); fetch its source again") from error
    return names


@contextmanager
def archive(path: Path) -> Iterator[tarfile.TarFile]:
    """An open tar file of images; ValueError names it if it is damaged or no tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a complete tar file ({error}); fetch its source again, or remove the file"
        ) from error


def demand_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """ValueError, naming the file, if columns are missing."""
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise ValueError(
            f"{path}: has no column {', '.join(lacking)}; expected {', '.join(needed)}, found "
            f"{', '.join(found) or 'none'}; fetch the pinned revision of its source"
        )


@dataclass(frozen=True)
class Tables:
    """The parquet files of one configuration's split in a Hub data set: `<folder>/<split>-*.parquet`.

    Other configurations (another language, the same rows in another order) are not read. With `folder` "*" every
    folder is a configuration (a subject), and all of them are read.
    """

    folder: str
    split: str

    def below(self, root: Path, name: str) -> list[Path]:
        """The tables below a folder, sorted by name, or those directly in it if there are no subfolders.

        ValueError, naming what was found instead, if they are missing or incomplete.
        """
        found: dict[Path, list[Path]] = {}
        for path in sorted(path for path in entries(Path(root)) if path.suffix == ".parquet"):
            found.setdefault(path.parent, []).append(path)
        if not found:
            raise ValueError(f"{root}: contains no parquet tables of {name}; fetch its source")
        named = [f for f in found if self.folder in ("*", f.name) and f != Path(root)]
        named = named or [f for f in found if f == Path(root)]
        if not named or (len(named) > 1 and self.folder != "*"):
            there = ", ".join(sorted(f.relative_to(root).as_posix() for f in named or found))
            raise ValueError(
                f"{root}: the tables of {name} must be in one folder {self.folder!r}, found {there}; fetch its source "
                "into a folder of its own"
            )
        of_split = re.compile(rf"{re.escape(self.split)}(?![A-Za-z0-9])")
        tables = [path for folder in named for path in found[folder] if of_split.match(path.name)]
        if not tables:
            there = ", ".join(sorted(path.name for folder in named for path in found[folder])[:4])
            raise ValueError(
                f"{root}: contains no table {self.split}-*.parquet of {name}, found {there}; fetch its source"
            )
        _demand_all_parts(tables)
        return tables


def _demand_all_parts(tables: Sequence[Path]) -> None:
    """ValueError if one of the files `<split>-00001-of-00003.parquet` of a folder is missing."""
    for lacking in incomplete(tables):
        raise ValueError(
            f"{lacking.beside.parent}: only {lacking.found} of {lacking.count} tables, number "
            f"{lacking.missing[0]} is missing; fetch its source again"
        )


class Ids:
    """The ids seen so far and their files, to reject duplicates."""

    def __init__(self) -> None:
        self._seen: dict[str, Path] = {}

    def add(self, name: str, path: Path) -> None:
        """Add an id; ValueError, naming both files, if it was added before."""
        if name in self._seen:
            first = self._seen[name]
            where = "in the same file" if first == path else f"in {first}"
            raise ValueError(
                f"{path}: {name} occurs twice, first {where}; fetch the pinned revision of its source into a "
                "folder of its own"
            )
        self._seen[name] = path


def hub_rows(
    root: Path,
    name: str,
    needed: Sequence[str],
    tables: Tables,
    key: Callable[[dict[str, Any]], str],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, row) for all rows of the parquet tables below a folder, sorted by file name, without image columns.

    ValueError if there are no tables, a column of `needed` is missing, two rows have the same `key`, or a row has no
    question or no answer.
    """
    import pyarrow.parquet as pq

    ids = Ids()
    for path in tables.below(root, name):
        names = columns(path)
        demand_columns(path, names, needed)
        kept = [name for name in names if not _PICTURE.fullmatch(name)]
        for row in pq.read_table(path, columns=kept).to_pylist():
            name = key(row)
            ids.add(name, path)
            demand_text(path, name, "question", row["question"])
            if row["answer"] in (None, ""):
                raise ValueError(
                    f"{path}: {name}: has no answer; fetch the pinned revision of its source"
                )
            yield path, row


def demand_some(where: Path, found: Sequence[Any]) -> None:
    """ValueError for a benchmark without any question or prompt."""
    if not found:
        raise ValueError(
            f"{where}: contains no questions or prompts; fetch the pinned revision of its source"
        )


def demand_text(path: Path, name: str, column: str, value: Any) -> None:
    """ValueError if a question or instruction is empty or not a string, which would be sent as `None`."""
    if not isinstance(value, str) or not value.strip():
        said = "blank" if isinstance(value, str) else kind_of(value)
        raise ValueError(
            f"{path}: {name}: {column} is {said}; fetch the pinned revision of its source"
        )


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the last line, cells by column) of each row of a CSV file; ValueError names the line of a bad row."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in rows:
            beyond = row.pop(None, [])  # empty cells if lines end with a comma
            if any(beyond) or None in row.values():
                columns = len(rows.fieldnames or ())
                raise csv.Error(f"the row does not have {columns} cells")
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: {error}; fetch its source again"
        ) from error


def demand_option(path: Path, name: str, answer: str, options: Iterable[str]) -> None:
    """ValueError if the correct answer is not among the options, as in splits without answers."""
    if answer not in options:
        raise ValueError(
            f"{path}: {name}: the answer {answer!r} is not among the options ({', '.join(options) or 'none'}); fetch "
            "the pinned revision of its source"
        )


def one_file(folder: Path, name: str, source: str) -> Path:
    """The file of that name below a folder; ValueError if there is none, or several that differ."""
    found = sorted(Path(folder).rglob(name)) if Path(folder).is_dir() else []
    if not found:
        raise ValueError(f"{folder}: contains no {name}; fetch {source}")
    if len({path.read_bytes() for path in found}) > 1:
        listed = ", ".join(path.relative_to(folder).as_posix() for path in found)
        raise ValueError(
            f"{folder}: contains {len(found)} different files {name} ({listed}); keep one"
        )
    return found[0]


def answered(
    benchmark: str, asked: Sequence[Question], answers: Mapping[str, str], partial: bool
) -> tuple[Coverage, list[tuple[Question, str]]]:
    """Coverage, and (question, reply) pairs; an empty reply counts as a reply.

    ValueError for unknown question ids, and for incomplete coverage unless `partial`.
    """
    unknown = sorted(set(answers) - {question.id for question in asked})
    if unknown:
        raise ValueError(
            f"{benchmark}: {len(unknown)} answers have unknown question ids, for instance "
            f"{unknown[0]}; the ids must be those of the benchmark"
        )
    statuses = [(q.id, "scored" if q.id in answers else "missing") for q in asked]
    coverage = coverage_of(statuses)
    coverage.demand(benchmark, partial)
    return coverage, [(q, answers[q.id]) for q in asked if q.id in answers]
