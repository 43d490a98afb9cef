"""`metadata.jsonl`, the captions of image folders on the Hub: a line for every image in its folder or below.

Each line is an object with `file_name`, relative to the folder of the file, and any other columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reca.core.documents import json_lines
from reca.core.unreadable import UnreadableText
from reca.data.readers.names import relative_name
from reca.data.readers.text import record_in_file

NAME = "metadata.jsonl"
FILE_NAME = "file_name"
MAX_BYTES = 4 * 2**30


@dataclass
class Metadata:
    """The rows of all such files of a folder, by the image's relative path; `faults` are the invalid lines."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)  # path of the file and line -> reason

    def read(self, path: Path, root: Path) -> None:
        """Add the lines of one file; ValueError if it cannot be read."""
        folder, table = path.parent.relative_to(root), path.relative_to(root).as_posix()
        for number, line in json_lines(path, MAX_BYTES):
            place = f"{table}:{number}"
            try:
                row = record_in_file(line, place, "the line")
                name = relative_name(row.pop(FILE_NAME, None), FILE_NAME)
            except UnreadableText as fault:
                self.faults[place] = fault.reason
                continue
            except ValueError as fault:
                self.faults[place] = str(fault)
                continue
            name = (folder / name).as_posix()
            if name in self.rows:
                self.faults[place] = f"a second line for {name}"
            else:
                self.rows[name] = row
