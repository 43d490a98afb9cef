"""CPU seconds to read rows of parquet files in shuffled order, with row groups that fit into the cache and that do not.

    python -m perf.parquet_reads --out docs/results/parquet_reads.json --before before.json

`--root` measures another checkout, such as one of an older commit, whose result `--before` then reads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS, ROW_GROUP, LARGE_ROW_GROUP, IMAGE_BYTES, READ = 10_000, 100, 1_000, 20_000, 1_000
UNCACHED_READ = 100  # each decodes a row group


def write_file(path: Path, row_group: int) -> None:
    """Write images in the Hub's form, random bytes instead of compressed pixels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sample = random.Random(0)
    rows = [
        {"image": {"bytes": sample.randbytes(IMAGE_BYTES), "path": None}, "prompt": f"image {row}"}
        for row in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)


def clocked(call: Callable[[], None]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    call()
    return round(time.process_time() - started, 4)


def read_groups(path: Path) -> None:
    """Decode every row group once with pyarrow."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group)


def read_map(path: Path, rows: Sequence[int]) -> None:
    """Read rows from a memory-mapped Arrow file with pyarrow."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    for row in rows:
        assert len(table.slice(row, 1).to_pylist()[0]["image"]["bytes"]) == IMAGE_BYTES


def write_map(path: Path, out: Path) -> None:
    """The uncompressed Arrow file of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path).combine_chunks()
    with pa.OSFile(str(out), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_shuffled(path: Path, count: int, options: dict[str, Any]) -> list[float]:
    """CPU seconds of two passes over different shuffled rows, images and captions, of one open data set."""
    import pyarrow.parquet  # noqa: F401 (its import is not part of a read)

    from reca.data.formats import open_dataset

    order = random.Random(1).sample(range(ROWS), 2 * count)
    dataset = open_dataset("parquet", path, **options)

    def read(rows: Sequence[int]) -> None:
        for row in rows:
            assert len(dataset[row].image or b"") == IMAGE_BYTES

    return [clocked(lambda: read(order[:count])), clocked(lambda: read(order[count:]))]


def measure(
    root: Path, path: Path, count: int = READ, options: dict[str, Any] | None = None
) -> dict[str, float]:
    """Both passes with the package of a checkout, in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), f"{root}/kernels"])}
    answer = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps([str(path), count, options or {}])],
        cwd=root,
        env=environment,
        check=True,
        capture_output=True,
    )
    first, later = json.loads(answer.stdout)
    return {f"first {count:,} rows": first, f"next {count:,} rows": later}


def measure_large(root: Path, folder: Path) -> dict[str, Any]:
    """Row groups of which one fits into the cache: decoded for each row, copied, and a plain memory map."""
    path, plain = folder / "large.parquet", folder / "plain.arrow"
    write_file(path, LARGE_ROW_GROUP)
    write_map(path, plain)
    rows = random.Random(2).sample(range(ROWS), READ)
    copies = {"arrow_folder": str(folder / "copies")}
    return {
        "cached row groups": measure(root, path, UNCACHED_READ, {"row_groups": 1}),
        "arrow_folder, empty": measure(root, path, options=copies),
        "arrow_folder, filled": measure(root, path, options=copies),
        "pyarrow memory map of the complete file, 1,000 rows": clocked(
            lambda: read_map(plain, rows)
        ),
    }


def main() -> None:
    """Measure and write, or print without `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="checkout to measure")
    parser.add_argument("--before", type=Path, help="result of an earlier run")
    parser.add_argument("--small", action="store_true", help="only the small row groups")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # in its own process
    arguments = parser.parse_args()
    if arguments.measure:
        path, count, options = arguments.measure
        print(json.dumps(read_shuffled(Path(path), count, options)))
        return
    root = arguments.root.resolve()
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "file": f"{ROWS} rows of {IMAGE_BYTES} bytes in row groups of {ROW_GROUP}",
        "unit": "CPU seconds",
    }
    if arguments.before:
        result["before"] = json.loads(arguments.before.read_text())["shuffled"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        write_file(path, ROW_GROUP)
        result["shuffled"] = measure(root, path)
        result["pyarrow, every row group once"] = clocked(lambda: read_groups(path))
        if not arguments.small:
            key = f"row groups of {LARGE_ROW_GROUP}, of which the cache holds one"
            result[key] = measure_large(root, Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
