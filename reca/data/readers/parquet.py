"""Parquet files in the form of image sets on the Hugging Face Hub; the laptop world uses it, too."""

from __future__ import annotations

import bisect
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_json
from reca.core.documents import json_value, kind_of
from reca.core.structure import Count, Whole
from reca.core.unreadable import UnreadableImage, UnreadableText
from reca.core.walk import entries
from reca.data.dataset import Conversation, Sample
from reca.data.readers.arrow_copy import ArrowCopies
from reca.data.readers.folder import natural_key
from reca.data.readers.hashes import hash_files
from reca.data.readers.llava import pair_turns
from reca.data.readers.text import text_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

DEFAULT_COLUMNS = {
    "image": "image",
    "caption": "prompt",
    "id": "id",
    "conversations": "conversations",
}
CACHE_MIB = 1024
LEAST_ROW_GROUPS = (
    4  # workers at the end of one row group and the start of the next share the cache
)
OPEN_COPIES = 256  # memory maps, each of which keeps a file open
# A cache is built in two passes in the file's order; as many as this are reads in another order.
EXPECTED_PASSES = 8


class ParquetDataset:
    """Rows of `*.parquet` under a folder (or of one file), in natural order of the file names.

    Args:
        path: file or folder.
        image, caption, id, conversations: column names. A default column may be missing, an
            explicit one may not. Images are raw bytes or the Hub's struct of `bytes` and `path`.
            Null in the caption or conversations column means that the row has none.
        extra: columns to store in `Sample.extra`; default: all others.
        cache_mib: MiB of decoded row groups kept in memory. A row group is decoded at once, so
            random access is fast while the columns that it reads fit; larger files are read in
            order, or with `arrow_folder`. The last four used are kept whatever their size.
        row_groups: number of row groups to keep, in place of the bound in bytes.
        arrow_folder: folder for uncompressed copies of the row groups (`ArrowCopies`), from which a
            row in any order is read alone. Caches are built in the file's order and need none.
    """

    def __init__(
        self,
        path: Path,
        image: str | None = None,
        caption: str | None = None,
        id: str | None = None,
        conversations: str | None = None,
        extra: Sequence[str] | None = None,
        row_groups: Count | None = None,
        cache_mib: Whole = CACHE_MIB,
        arrow_folder: str | Path | None = None,
    ) -> None:
        self.root = path if path.is_dir() else path.parent
        self.files = _files(path)
        self._groups = _row_groups(self.files)
        self._ends = list(accumulate(rows for _, _, rows in self._groups))
        self._first: dict[Path, int] = {}  # rows before each file
        for (file, _, rows), end in zip(self._groups, self._ends, strict=True):
            self._first.setdefault(file, end - rows)
        if not self._ends or self._ends[-1] == 0:
            raise ValueError(f"{path}: no rows in {len(self.files)} parquet files")
        named = {"image": image, "caption": caption, "id": id, "conversations": conversations}
        present = _schema_names(self.files)
        self.columns = _choose_columns(path, present, named)
        self.extra = _choose_extra(path, present, self.columns, extra)
        self._cache: OrderedDict[tuple[int, bool], pa.Table] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_mib * 2**20
        self._row_groups = row_groups
        self._copies = None if arrow_folder is None else ArrowCopies(arrow_folder)
        self._decoded = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """The row at `index`; null images give `image=None`."""
        row = self._row(index, images=True)
        text_only = self._texts(index, row)
        return replace(text_only, image=_image_bytes(self._get(row, "image"), text_only.id))

    def texts(self, index: int) -> Sample:
        """The row at `index` without its image, whose column is not read."""
        return self._texts(index, self._row(index, images=False))

    def _texts(self, index: int, row: dict[str, Any]) -> Sample:
        own, caption = self._get(row, "id"), self._get(row, "caption")
        name = self._row_name(index) if own is None else str(own)
        return Sample(
            id=name,
            caption=None if caption is None else text_of(caption, name),
            conversations=parse_conversations(self._get(row, "conversations"), name),
            extra={column: row[column] for column in self.extra},
        )

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Every row is a sample."""
        return {}

    def fingerprint(self) -> str:
        """Hash of the files' names and contents and of the selected columns."""
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        content = hash_files(self.root, names)
        return sha256_json([content, self.columns, list(self.extra)])

    def _row(self, index: int, *, images: bool) -> dict[str, Any]:
        index = range(len(self))[index]
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        try:
            return self._table(group, images).slice(index - start, 1).to_pylist()[0]
        except UnicodeDecodeError as fault:  # Arrow does not validate strings
            raise UnreadableText(self._row_name(index), "a column is not UTF-8") from fault

    def _get(self, row: dict[str, Any], role: str) -> Any:
        return row[self.columns[role]] if role in self.columns else None

    def _row_name(self, index: int) -> str:
        group = bisect.bisect_right(self._ends, index)
        file = self._groups[group][0]
        row = index - self._first[file]
        return f"{file.relative_to(self.root).with_suffix('').as_posix()}/{row}"

    def _table(self, group: int, images: bool) -> pa.Table:
        """One row group, with or without images: from the cache, its copy, or the file."""
        with self._lock:
            # A table with images also serves texts, and a map reads no image for them.
            whole = images or self._copies is not None or (group, True) in self._cache
            key = (group, whole)
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            columns = [name for role, name in self.columns.items() if whole or role != "image"]
            decode = partial(self._decode, group, [*columns, *self.extra])
            if self._copies is None:
                table = decode()
            else:
                file, number, _ = self._groups[group]
                table = self._copies.table(file, number, [*columns, *self.extra], decode)
            self._keep(key, table)
            return table

    def _decode(self, group: int, columns: list[str]) -> pa.Table:
        self._decoded += 1
        if self._copies is None and self._decoded == EXPECTED_PASSES * len(self._groups) + 1:
            log.warning(
                "%s: %d row groups were decoded %d times each, as rows are read in another order than the files'; "
                "set the option arrow_folder to a folder for uncompressed copies, or raise cache_mib",
                self.root,
                len(self._groups),
                EXPECTED_PASSES,
            )
        return _read_group(*self._groups[group], columns)

    def _keep(self, key: tuple[int, bool], table: pa.Table) -> None:
        """Add a table to the cache, evicting the least recently used ones if it is full."""
        self._cache[key] = table
        self._cached_bytes += table.nbytes
        least = LEAST_ROW_GROUPS if self._row_groups is None else max(1, self._row_groups)
        bound = self._cache_bytes if self._row_groups is None else 0
        if self._copies is not None:  # whose bytes are the page cache's
            least, bound = OPEN_COPIES, 0
        while self._cached_bytes > bound and len(self._cache) > least:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


def parse_conversations(value: Any, name: str) -> list[Conversation]:
    """Conversations from JSON text or nested lists.

    Accepted: a list of conversations, each a list of [question, answer]; or one conversation in
    LLaVA's form, a list of {"from", "value"}. None gives an empty list.

    Raises:
        UnreadableText: anything else; names the sample.
    """
    turns = _parsed(value, name) if isinstance(value, str) else value
    if turns is None or turns == []:
        return []
    if not isinstance(turns, list):
        raise UnreadableText(name, f"the conversations are {kind_of(turns)}, not a list")
    if isinstance(turns[0], dict):
        return [pair_turns(turns, name)]
    parsed = [[_pair(turn, name) for turn in _list(one, name)] for one in turns]
    if not all(parsed):
        raise UnreadableText(name, "a conversation has no turns")
    return parsed


def _parsed(text: str, name: str) -> Any:
    try:
        return json_value(text, "the conversations")
    except ValueError as fault:
        raise UnreadableText(name, str(fault)) from fault


def _pair(turn: Any, name: str) -> tuple[str, str]:
    if len(_list(turn, name)) != 2:
        raise UnreadableText(name, f"a turn has {len(turn)} parts, not a question and an answer")
    return text_of(turn[0], name, "a question"), text_of(turn[1], name, "an answer")


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UnreadableText(name, f"the conversations hold {kind_of(value)} in place of a list")
    return value


def _image_bytes(value: Any, name: str) -> bytes | None:
    """Raw bytes, or those of the Hub's struct; a path without bytes is rejected."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None:
        return None
    raise UnreadableImage(name, "the image column holds no bytes; embed the images in the parquet")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    named = (file for file in entries(path) if file.name.endswith(".parquet"))
    files = sorted(named, key=lambda file: natural_key(file.as_posix()))
    if not files:
        raise ValueError(f"{path}: no *.parquet in this folder")
    return files


def _row_groups(files: list[Path]) -> list[tuple[Path, int, int]]:
    """(file, row group, rows) of every row group; only the footers are read.

    ValueError names a file with a damaged footer: a wrong number of rows, names that are not UTF-8.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = []
    for file in files:
        try:
            footer = pq.read_metadata(file)
            rows = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
            _ = footer.schema.to_arrow_schema().names  # fails for names that are not UTF-8
            if min(rows, default=0) < 0:
                raise ValueError(f"a row group claims {min(rows)} rows")
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise ValueError(
                f"{file}: not a complete parquet file ({fault}); fetch it again"
            ) from fault
        groups += [(file, group, count) for group, count in enumerate(rows)]
    return groups


def _read_group(file: Path, group: int, rows: int, columns: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(group, columns=columns)
        if len(table) != rows:
            raise ValueError(f"{len(table)} rows instead of {rows}")
        return table
    except (pa.ArrowException, OSError, ValueError) as fault:
        raise ValueError(
            f"{file}: row group {group} is damaged ({fault}); fetch it again"
        ) from fault


def _schema_names(files: list[Path]) -> list[str]:
    """Columns of the files, which must agree."""
    import pyarrow.parquet as pq

    names = [pq.read_schema(file).names for file in files]
    for file, other in zip(files, names, strict=True):
        if other != names[0]:
            raise ValueError(
                f"{file}: columns {other} differ from {names[0]} of {files[0].name}; fetch the pinned revision of its "
                "source into a folder of its own"
            )
    return names[0]


def _choose_columns(path: Path, present: list[str], named: dict[str, str | None]) -> dict[str, str]:
    columns = {}
    for role, name in named.items():
        if name is not None and name not in present:
            raise ValueError(
                f"{path}: no column {name!r} ({role}); it has {present}; set data.<name>.options.{role}, or fetch the "
                "pinned revision of its source"
            )
        chosen = name or DEFAULT_COLUMNS[role]
        if chosen in present:
            columns[role] = chosen
    return columns


def _choose_extra(
    path: Path, present: list[str], columns: dict[str, str], extra: Sequence[str] | None
) -> tuple[str, ...]:
    if extra is None:
        return tuple(name for name in present if name not in columns.values())
    for name in extra:
        if name not in present:
            raise ValueError(f"{path}: no column {name!r} (extra); it has {present}")
    return tuple(name for name in extra if name not in columns.values())
