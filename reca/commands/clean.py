"""`make clean`: remove what stages wrote to the workflow's folders, but no files that a user added.

python -m reca.commands.clean
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from reca.config.compose import is_resolved
from reca.core import artifacts
from reca.core.ownership import (
    files_in,
    is_cut_off,
    is_derived,
    is_work,
    remove_if_empty,
    remove_work,
)
from reca.sources.catalogue import SOURCES_FILE
from reca.sources.fetch import LOCK_FILE, WORK_DIR, list_sources

FOLDERS = ("data", "results", "work", "logs", "benchmarks", "build")
_LOG_LINE = re.compile(rb"^(\d\d:\d\d:\d\d reca\.|reca [a-z-]+: )", re.MULTILINE)
_LOG_HEAD = 64 * 1024  # bytes: libraries may warn before the first line of ours
_BENCHMARK = b"s\th:m:s\t"  # how Snakemake's header begins
_PART = re.compile(r".+\.part(\.json)?")  # as `reca.sources.parts` names them


def clean(root: Path = Path()) -> list[Path]:
    """Remove outputs, unfinished work, logs and composed configurations below `root`; returns the remaining files."""
    links = [root / name for name in FOLDERS if (root / name).is_symlink()]
    folders = [root / name for name in FOLDERS if root / name not in links]
    downloads = _whole_downloads(root)
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):  # innermost folders first
            if path.is_dir() and not path.is_symlink():
                _clean_folder(path)
            elif _is_record(path, folder) or _is_download(path, root / WORK_DIR, downloads):
                path.unlink()
    for folder in folders:
        _prune(folder)
    return links + [folder / name for folder in folders for name in files_in(folder)]


def _clean_folder(folder: Path) -> None:
    if is_work(folder):
        remove_work(folder)
        return
    written = artifacts.written(folder)
    if written and all(name in written or is_derived(name) for name in files_in(folder)):
        shutil.rmtree(folder)


def _is_record(path: Path, folder: Path) -> bool:
    """Whether a file is a composed configuration, a job's log, or Snakemake's benchmark of a job."""
    if path.is_symlink() or not path.is_file():
        return False
    if folder.name == "build":
        return path.suffix == ".yaml" and is_resolved(path)
    if folder.name == "logs" and path.suffix == ".log":
        # A job that prints only its result has no line of ours, but a benchmark.
        job = (folder.with_name("benchmarks") / path.relative_to(folder)).with_suffix(".tsv")
        head = _head(path, _LOG_HEAD)
        return not head or _LOG_LINE.search(head) is not None or _is_benchmark(job)
    return folder.name == "benchmarks" and path.suffix == ".tsv" and _is_benchmark(path)


def _is_benchmark(path: Path) -> bool:
    return path.is_file() and _head(path, len(_BENCHMARK)) == _BENCHMARK


def _head(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _is_download(path: Path, work: Path, whole: Set[Path]) -> bool:
    """Whether a file is one that `reca fetch` has brought, or a part of one, in the folder of its source."""
    if path.is_symlink() or not path.is_relative_to(work) or path.parent == work:
        return False
    return path in whole or _PART.fullmatch(path.name) is not None or is_cut_off(path.name)


def _whole_downloads(root: Path) -> set[Path]:
    """Where `reca fetch` gathers the files of all sources until the last of a source is there."""
    with suppress(ValueError):  # without a readable catalogue only parts are known by their names
        known = list_sources(sources=root / SOURCES_FILE, lock=root / LOCK_FILE)
        return {
            root / WORK_DIR / each.source.name / file.save_as
            for each in known
            for file in each.source.files
        }
    return set()


def _prune(folder: Path) -> None:
    """Remove a folder and its subfolders if they are empty."""
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place).is_dir() and not Path(place).is_symlink():
            remove_if_empty(Path(place))


if __name__ == "__main__":
    for left in clean():
        print(f"{left}: not written by the workflow, not removed", file=sys.stderr)
