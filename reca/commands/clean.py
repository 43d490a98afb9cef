"""`make clean`: remove what stages wrote to the workflow's folders, but no files that a user added.

python -m reca.commands.clean
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from reca.config.compose import is_resolved
from reca.core import artifacts
from reca.core.ownership import files_in, is_derived, is_work, remove_if_empty, remove_work
from reca.sources.fetch import WORK_DIR

FOLDERS = ("data", "results", "work", "logs", "benchmarks", "build")
LOGS = {"logs": "*.log", "benchmarks": "*.tsv"}  # Snakemake's, one per job


def clean(root: Path = Path()) -> list[Path]:
    """Remove outputs, unfinished work, logs and composed configurations below `root`; returns the remaining files."""
    folders = [root / name for name in FOLDERS if not (root / name).is_symlink()]
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):  # innermost folders first
            if path.is_dir() and not path.is_symlink():
                _clean_folder(path)
            elif _is_record(path, folder):
                path.unlink()
    shutil.rmtree(root / WORK_DIR, ignore_errors=True)
    for folder in folders:
        _prune(folder)
    return [folder / name for folder in folders for name in files_in(folder)]


def _clean_folder(folder: Path) -> None:
    if is_work(folder):
        remove_work(folder)
        return
    written = artifacts.written(folder)
    if written and all(name in written or is_derived(name) for name in files_in(folder)):
        shutil.rmtree(folder)


def _is_record(path: Path, folder: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if folder.name == "build":
        return path.suffix == ".yaml" and is_resolved(path)
    return folder.name in LOGS and path.match(LOGS[folder.name])


def _prune(folder: Path) -> None:
    """Remove a folder and its subfolders if they are empty."""
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place).is_dir() and not Path(place).is_symlink():
            remove_if_empty(Path(place))


if __name__ == "__main__":
    for left in clean():
        print(f"{left}: not written by the workflow, not removed", file=sys.stderr)
