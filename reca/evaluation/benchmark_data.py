"""A benchmark's prompts and questions, and its images: sources of edits, and images that questions refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reca.core.walk import entries
from reca.data.prompts import bank
from reca.evaluation import registry
from reca.evaluation.assignment import Assignment, ImagePass
from reca.evaluation.reading import Ids, Tables, archive, columns, demand_some
from reca.inference.items import Prompt, Question

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

Item = TypeVar("Item")
Guidance = Sequence[float] | Mapping[str, float]


# ---- what one job samples --------------------------------------------------------------------------
def shard_of(items: Sequence[Item], shard: tuple[int, int], together: int = 1) -> list[Item]:
    """Every n-th item, starting with the i-th; `together` consecutive items (question pairs) share a shard."""
    index, count = shard
    return [item for place, item in enumerate(items) if place // together % count == index]


def spread(
    items: Sequence[Item], count: int, task: Callable[[Item], str], together: int = 1
) -> list[Item]:
    """At most `count` items (0: all) in their order: the first of every task, then the second of every task, and so on.

    If a turn does not fit, its evenly spaced tasks are taken. `together` consecutive items are never parted, so that a
    pair is the least.
    """
    if not count:
        return list(items)
    units = [items[start : start + together] for start in range(0, len(items), together)]
    turns: dict[int, list[int]] = {}  # how many of its task come before -> places of units
    seen: Counter[str] = Counter()
    for place, unit in enumerate(units):
        turns.setdefault(seen[task(unit[0])], []).append(place)
        seen[task(unit[0])] += 1
    chosen: list[int] = []
    for places in turns.values():
        taken = min(len(places), max(1, count // together) - len(chosen))
        chosen += [places[number * len(places) // taken] for number in range(taken)]
    return [item for place in sorted(chosen) for item in units[place]]


def assignment(
    benchmark: BenchmarkConfig,
    data: Mapping[str, Path],
    split: str,
    guidance: Guidance,
    shard: tuple[int, int],
) -> Assignment:
    """The prompts and questions of shard i of n of a benchmark.

    `guidance`: a list of levels, or the level chosen for each outcome. ValueError for several levels if the benchmark
    has no development prompts to choose between them.
    """
    kind = registry.kind(benchmark.kind)
    if kind.toyworld:
        found: Assignment = registry.module(benchmark.kind).assignment(benchmark, split, guidance)
        return found
    if isinstance(guidance, Mapping) or len(guidance) != 1:
        raise ValueError(
            f"{benchmark.kind}: sampled at one guidance level, not at {guidance}; give one level"
        )
    if not kind.images:
        asked = shard_of(questions_of(benchmark, data), shard, together=2)  # MMVP's pairs, MME's
        return Assignment(
            questions=asked,
            read=lambda part: question_pictures(benchmark.kind, part, data),
            batch_size=benchmark.batch_size,
        )
    one = _image_pass(benchmark, data, guidance[0], shard)
    return Assignment((one,), batch_size=benchmark.batch_size)


def _image_pass(
    benchmark: BenchmarkConfig, data: Mapping[str, Path], guidance: float, shard: tuple[int, int]
) -> ImagePass:
    """All prompts, or only `prompts` of them; scores of a limited benchmark are marked as partial."""
    (need,) = registry.kind(benchmark.kind).needs
    if need == "reconstruct":
        from reca.evaluation.tasks.reconstruction import pictures

        originals = shard_of(pictures(data, benchmark.reconstructions), shard)
        prompts = [replace(prompt, text=bank()[0]) for prompt, _ in originals]
        return ImagePass(
            "reconstruct", prompts, guidance, sources={p.id: file for p, file in originals}
        )
    mine = shard_of(items_of(benchmark.kind, data, benchmark.prompts), shard)
    if need == "edit":
        sources = edit_sources(benchmark.kind, mine, data)
        return ImagePass("edit", mine, guidance, sources=sources)
    assert need == "draw", need
    return ImagePass("draw", mine, guidance, images_per_prompt=benchmark.images_per_prompt)


# ---- prompts and questions -------------------------------------------------------------------------
def items_of(kind: str, data: Mapping[str, Path], limit: int = 0) -> list[Prompt]:
    """The prompts of an image benchmark, or `limit` of them; for reconstruction, one per original image."""
    if kind == "reconstruction":
        from reca.evaluation.tasks.reconstruction import pictures

        return [prompt for prompt, _ in pictures(data, limit)]
    found: list[Prompt] = registry.module(kind).prompts(data)
    ids, folder = Ids(), Path(data["prompts"])
    for prompt in found:  # readers check ids per file; this covers readers that do not
        ids.add(prompt.id, folder)
    demand_some(folder, found)
    return spread(found, limit, _task)


def _task(prompt: Prompt) -> str:
    return prompt.task


def questions_of(benchmark: BenchmarkConfig, data: Mapping[str, Path]) -> list[Question]:
    """The questions of a benchmark, or some of them; in all rotations of the options if configured."""
    module = registry.module(benchmark.kind)
    found: list[Question] = module.questions(data)
    ids, folder = Ids(), Path(data["questions"])
    for question in found:
        ids.add(question.id, folder)
    demand_some(folder, found)
    together = getattr(module, "TOGETHER", 1)
    found = spread(found, benchmark.questions, lambda question: question.kind, together)
    if not benchmark.rotations:
        return found
    if not hasattr(module, "rotated"):
        raise ValueError(
            f"benchmarks.{benchmark.kind}.rotations: only MMBench has rotations; unset it"
        )
    turned: list[Question] = module.rotated(found)
    return turned


# ---- edits -----------------------------------------------------------------------------------------
def edit_sources(kind: str, items: Sequence[Prompt], data: Mapping[str, Path]) -> dict[str, bytes]:
    """The source image of each edit as an encoded file, by prompt id; ValueError names the first missing one."""
    if kind == "gedit":
        from reca.evaluation.tasks.gedit import source_pictures

        found = source_pictures(data)
        names = {item.id: item.id for item in items}
    elif kind == "reconstruction":
        from reca.evaluation.tasks.reconstruction import pictures

        found = {prompt.id: file for prompt, file in pictures(data, 0)}
        names = {item.id: item.id for item in items}
    else:
        names = {item.id: item.facts["source"] for item in items}
        found = _in_folder(Path(data["images"]), set(names.values()))
    lacking = [name for name in names.values() if name not in found]
    if lacking:
        raise ValueError(
            f"{kind}: {len(lacking)} source images are missing in {data.get('images', data)}, for "
            f"instance {lacking[0]}; fetch its source again"
        )
    return {name: found[source] for name, source in names.items()}


def _in_folder(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """Contents of the files whose path ends in a wanted name, in a folder and in its tar files (not extracted)."""
    found: dict[str, bytes] = {}
    for path in sorted(entries(folder)):
        if path.suffix == ".tar" and path.is_file():
            for member, file in _in_tar(path, wanted).items():
                _keep(found, member, file, path)
        elif path.is_file() and (name := _ending(path.relative_to(folder).parts, wanted)):
            _keep(found, name, path.read_bytes(), path)
    return found


def _keep(found: dict[str, bytes], name: str, file: bytes, path: Path) -> None:
    """Add a file; ValueError if a different image of the same name was found before."""
    if found.setdefault(name, file) != file:
        raise ValueError(f"{path}: a different image {name} was found before; keep one of them")


def _in_tar(path: Path, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with archive(path) as tar:
        for member in tar:
            name = _ending(tuple(member.name.split("/")), wanted)
            if name and member.isreg() and (file := tar.extractfile(member)) is not None:
                _keep(found, name, file.read(), path)
    return found


def _ending(parts: Sequence[str], wanted: set[str]) -> str | None:
    """The wanted name that a path ends in, compared by complete path components."""
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in wanted:
            return name
    return None


# ---- questions ---------------------------------------------------------------------------------------
_PIXELS = ("image", "image_1")
_ID_COLUMNS = {
    "mme": "question_id",
    "pope": "image_source",
    "gqa": "id",
    "mmmu": "id",
    "seed": "question_id",
    "mmbench": "index",
    "mmvet": "question_id",
}


def question_pictures(
    kind: str, asked: Iterable[Question], data: Mapping[str, Path]
) -> dict[str, bytes]:
    """The encoded images that questions refer to, by image id; ValueError names the first missing one."""
    wanted = {name for question in asked for name in question.image_ids}
    folder = Path(data["questions"])
    if kind == "mmvp":
        found = _of_mmvp(folder, wanted)
    elif kind == "mmmu":
        found = _of_mmmu(_tables(kind, folder), wanted)
    else:
        found = _from_tables(_tables(kind, folder), _ID_COLUMNS[kind], wanted)
    lacking = sorted(wanted - set(found))
    if lacking:
        raise ValueError(
            f"{folder}: no image for {kind} question {lacking[0]}"
            f"{'' if kind == 'mmvp' else _tables_seen(_tables(kind, folder), _ID_COLUMNS[kind])}; "
            "fetch its source again"
        )
    return found


def _tables(kind: str, folder: Path) -> list[Path]:
    """The tables that hold a benchmark's images: its question tables, or those of a separate configuration."""
    module = registry.module(kind)
    tables: Tables = getattr(module, "PICTURES", module.TABLES)
    return tables.below(folder, kind)


def _of_mmvp(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """Files named after their question; ValueError for two files of the same name."""
    files: dict[str, Path] = {}
    for path in sorted(path for path in entries(folder) if path.suffix == ".jpg"):
        if path.stem in wanted and files.setdefault(path.stem, path) != path:
            raise ValueError(
                f"{path}: {path.stem} occurs twice, first as {files[path.stem]}; keep one"
            )
    return {name: path.read_bytes() for name, path in files.items()}


def _of_mmmu(tables: Sequence[Path], wanted: set[str]) -> dict[str, bytes]:
    """Images from the row of their question, one column per image."""
    from reca.evaluation.tasks.mmmu import picture_place

    by_column: dict[str, dict[str, str]] = {}
    for name in wanted:
        row, column = picture_place(name)
        by_column.setdefault(column, {})[row] = name
    found: dict[str, bytes] = {}
    for column, names in sorted(by_column.items()):
        files = _from_tables(tables, _ID_COLUMNS["mmmu"], set(names), (column,))
        found |= {names[row]: file for row, file in files.items()}
    return found


def _tables_seen(tables: Sequence[Path], column: str) -> str:
    """The part of an error message that names a table without the image columns; empty if all have them."""
    for path in tables:
        there = columns(path)
        if column not in there or not set(_PIXELS) & set(there):
            wanted = f"{column} and {' or '.join(_PIXELS)}"
            return f": expected columns {wanted}; {path} has {', '.join(there)}"
    return ""


def _from_tables(
    tables: Sequence[Path], column: str, wanted: set[str], pixels: Sequence[str] = _PIXELS
) -> dict[str, bytes]:
    """Encoded images by the id in `column`, from the first of the columns `pixels` in each table; skips empty cells."""
    import pyarrow.parquet as pq

    found: dict[str, bytes] = {}
    for path in tables:
        index = _index(str(path), column)
        rows = sorted({index[name] for name in wanted if name in index and name not in found})
        there = set(columns(path))
        seen = next((name for name in pixels if name in there), None)
        if not rows or seen is None:
            continue
        table = pq.read_table(path, columns=[column, seen]).take(rows)
        for row in table.to_pylist():
            if row[seen] is not None:
                found.setdefault(str(row[column]), _file(row[seen], path, str(row[column])))
    return found


@lru_cache(maxsize=256)
def _index(path: str, column: str) -> dict[str, int]:
    """Row index by id for a table with images; empty for a table without images."""
    import pyarrow.parquet as pq

    names = columns(Path(path))
    if column not in names or not set(_PIXELS) & set(names):
        return {}
    ids = pq.read_table(path, columns=[column])[column].to_pylist()
    return {str(name): place for place, name in reversed(list(enumerate(ids)))}


def _file(cell: Any, path: Path, name: str) -> bytes:
    """The bytes of an image cell: a Hub image struct, a list of one, or plain bytes; ValueError if it is empty."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes) or not found:
        raise ValueError(f"{path}: row {name} has no image; fetch its source again")
    return found
