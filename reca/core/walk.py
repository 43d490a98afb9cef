"""All that lies below a folder, or an error: `Path.rglob` says nothing about a subfolder that it cannot read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


def entries(root: Path, *, hidden: bool = True) -> Iterator[Path]:
    """Folders, files and links below `root`, in no order; links to folders are not followed.

    With `hidden=False` names that begin with a dot are left out, and such folders are not entered. ValueError names a
    folder that cannot be read.
    """
    for place, folders, files in os.walk(root, onerror=_refuse):
        if not hidden:  # in place: what is removed here is not walked
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            if hidden or not name.startswith("."):
                yield Path(place, name)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(
        f"{error.filename}: cannot read this folder ({error.strerror}), so what lies in it would be missing; make it "
        "readable, or move it out of the data"
    ) from error
