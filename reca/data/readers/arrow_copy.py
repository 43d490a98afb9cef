"""Copies of row groups as uncompressed Arrow files, which a memory map reads one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_json
from reca.core.atomic import disk_errors, replacing
from reca.core.ledger import stamp

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowCopies:
    """Row groups in a folder, each copied at its first use; processes may share the folder.

    A copy is named by the state of its parquet file and the columns, so a changed file is copied again and the copies
    of an interrupted run are used by the next. A complete set is as large as the decoded columns. ValueError for
    an empty path.
    """

    def __init__(self, folder: str | Path) -> None:
        if not str(folder):
            raise ValueError(f"arrow_folder = {folder!r}: must be the path of a folder")
        self.folder = Path(folder)

    def table(
        self, file: Path, group: int, columns: Sequence[str], decode: Callable[[], pa.Table]
    ) -> pa.Table:
        """A memory-mapped table of row group `group` of `file`, written from `decode()` if there is no copy yet.

        Raises:
            ValueError: no space for the copy, or a damaged one.
        """
        name = sha256_json([str(file.resolve()), stamp(file), group, list(columns)])
        path = self.folder / f"{name}.arrow"
        if not path.is_file():
            _write(decode(), path)
        return _mapped(path)


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow as pa

    with (
        disk_errors(path, f"copy a row group of {table.nbytes} bytes"),
        replacing(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def _mapped(path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        source: Any = pa.memory_map(str(path))
        return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as fault:
        raise ValueError(f"{path}: damaged copy of a row group ({fault}); remove it") from fault
