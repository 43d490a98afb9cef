"""Whose a folder is: a stage replaces and removes only what stages wrote, never a file of the user's.

An output folder is a stage's own where the records in it name that very stage and list every file (`records` reads
them). A work folder is a stage's own where it holds the mark of that stage and no name that stages do not write.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from reca.core.atomic import disk_errors

# Indexes that readers keep next to data, and such files before they have their name (`atomic.replacing`): another job
# may be writing one, or was killed meanwhile. They can be made again at any time.
DERIVED = (".reca-", "..reca-")
MARK = ".reca-work-"  # in a work folder, followed by the name of its stage
_ATOMIC = re.compile(r"(.*/)?\.([^/]+)\.[0-9a-f]{16}")  # as `reca.core.atomic` names what it writes
_MARK_TEXT = "Unfinished work of a reca stage: it goes on from here, and removes it when it ends.\n"
_WORK_NAMES = re.compile(
    r"\.reca-work-.+|checkpoints|lock|log\.jsonl|timing\.jsonl|tensorboard"  # training
    r"|stage\.json|start(\.json)?|cache|phases"  # pre-training
    r"|[0-9a-f]{16}|any|guidance-.+|reconstruct|evidence\.jsonl"  # drawing, examining
    r"|[0-9a-f]{64}\.(safetensors|json)|[0-9a-z]+\.lock"  # shards of a cache
)


def files_in(folder: Path) -> Iterator[str]:
    """Relative names of all that lies below a folder except plain folders; links are not followed."""
    for root, folders, files in os.walk(folder):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield str((place / name).relative_to(folder))


def is_derived(name: str) -> bool:
    """Whether a file is an index that a reader keeps next to the data."""
    return Path(name).name.startswith(DERIVED)


def check_place(option: str, folder: Path, reads: Iterable[Path]) -> None:
    """ValueError if a folder to write is a link or a file, or holds the working directory, or if it holds or
    lies in one that is read.
    """
    if folder.is_symlink():
        raise ValueError(f"{option} {folder}: is a link; name the folder itself")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder}: is a file; name a folder")
    place = folder.resolve()
    if Path().resolve().is_relative_to(place):
        raise ValueError(
            f"{option} {folder}: holds the working directory; name a folder of its own, such as work/NAME"
        )
    for read in reads:
        source = read.resolve()
        if source.is_relative_to(place):
            where = "is" if source == place else "holds"
        elif place.is_relative_to(source):
            where = "lies in"
        else:
            continue
        raise ValueError(
            f"{option} {folder}: {where} {read}, which this stage reads; name another folder"
        )


def check_output(
    folder: Path, stage: str, written: Set[str] | None, *, older: bool = False
) -> None:
    """ValueError if a folder holds a file that the stage did not write.

    `written` are the files that the folder's own records name as this stage's, None if no record does: with
    `older`, because an older reca wrote it.
    """
    if not folder.is_dir():
        return
    remedy = "nothing was changed; name another folder, or move what is in this one"
    if older:
        remedy = (
            "its run.json is of an older reca, which listed no files: where all in it is reca's own, remove the "
            "folder and run again"
        )
    for name in files_in(folder):
        if written is None:
            raise ValueError(
                f"--out {folder}: holds {name} and no record of stage {stage!r}, so it is not replaced; {remedy}"
            )
        if name not in written and not is_derived(name) and not _is_cut_off(name, written):
            raise ValueError(
                f"--out {folder}: holds {name}, which stage {stage!r} did not write; {remedy}"
            )


def _is_cut_off(name: str, written: Set[str]) -> bool:
    """Whether this is what a killed writer left of one of these files."""
    return is_cut_off(name) and final_name(name) in written


def is_cut_off(name: str) -> bool:
    """Whether a file is named as an atomic writer names it until it is complete."""
    return _ATOMIC.fullmatch(name) is not None


def final_name(name: str) -> str:
    """The name that a file gets when it is complete; of any other file its own."""
    found = _ATOMIC.fullmatch(name)
    return f"{found[1] or ''}{found[2]}" if found else name


def check_file(option: str, path: Path, ours: Callable[[Path], bool]) -> None:
    """ValueError if a file to write is a link, a folder, or holds what `ours` does not know as written by reca."""
    if path.is_symlink():
        raise ValueError(f"{option} {path}: is a link; name the file itself")
    if path.is_dir():
        raise ValueError(f"{option} {path}: is a folder; name a file")
    if path.exists() and path.stat().st_size and not ours(path):
        raise ValueError(
            f"{option} {path}: exists and was not written by this command, so it is not replaced; name another file"
        )


@dataclass(frozen=True)
class WorkFolder:
    """A stage's unfinished state. Entered, it is marked; when the block ends well, what stages wrote is removed."""

    path: Path
    stage: str

    def check(self, reads: Iterable[Path], option: str = "--work") -> None:
        """ValueError unless the folder is absent, empty or this stage's own; `reads` must lie outside."""
        check_place(option, self.path, reads)
        if not self.path.is_dir():
            return
        names = sorted(entry.name for entry in self.path.iterdir())
        foreign = [name for name in names if not _is_work_name(name)]
        if names and (foreign or self._mark.name not in names):
            raise ValueError(
                f"{option} {self.path}: holds {(foreign or names)[0]} and is not the work folder of stage "
                f"{self.stage!r}; name another one, or move what is in it"
            )

    @property
    def _mark(self) -> Path:
        return self.path / f"{MARK}{self.stage.replace(' ', '-')}"

    def claim(self) -> None:
        """Make and mark the folder; processes may do so at the same time."""
        with disk_errors(f"--work {self.path}", "write here"):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self._mark, "a") as file:
                if file.tell() == 0:
                    file.write(_MARK_TEXT)

    def remove(self) -> None:
        """Remove what stages wrote, the mark last; the folder stays where something else lies in it."""
        remove_work(self.path)

    def __enter__(self) -> WorkFolder:
        self.claim()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or [entry.name for entry in self.path.iterdir()] == [self._mark.name]:
            self.remove()


def _is_work_name(name: str) -> bool:
    return _WORK_NAMES.fullmatch(final_name(name)) is not None


def is_mark(entry: Path) -> bool:
    """Whether a file is the mark of a work folder."""
    return entry.name.startswith(MARK)


def is_work(folder: Path) -> bool:
    """Whether a folder holds the mark of a stage's unfinished work."""
    return not folder.is_symlink() and any(folder.glob(f"{MARK}*"))


def remove_work(folder: Path) -> None:
    """Remove what stages wrote into a work folder, and the folder where nothing else lies in it."""
    entries = [entry for entry in folder.iterdir() if _is_work_name(entry.name)]
    for entry in sorted(entries, key=is_mark):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    remove_if_empty(folder)


def remove_if_empty(folder: Path) -> bool:
    """Remove a folder in which nothing lies; False where something does."""
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True
