"""Seconds to read rows of a parquet file in shuffled order, compared with reading its row groups with pyarrow.

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
from pathlib import Path

ROWS, ROW_GROUP, IMAGE_BYTES, READ = 10_000, 100, 20_000, 1_000


def write_file(path: Path) -> None:
    """Write images in the Hub's form: row groups of 100, random bytes instead of compressed pixels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sample = random.Random(0)
    rows = [
        {"image": {"bytes": sample.randbytes(IMAGE_BYTES), "path": None}, "prompt": f"image {row}"}
        for row in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=ROW_GROUP)


def read_groups(path: Path) -> float:
    """Seconds to decode every row group once with pyarrow."""
    import pyarrow.parquet as pq

    started = time.perf_counter()
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group)
    return time.perf_counter() - started


def read_shuffled(path: Path) -> list[float]:
    """Seconds of two passes over different shuffled rows, images and captions, of one open data set."""
    import pyarrow.parquet  # noqa: F401 (its import is not part of a read)

    from reca.data.formats import open_dataset

    order = random.Random(1).sample(range(ROWS), 2 * READ)
    dataset, seconds = open_dataset("parquet", path), []
    for rows in (order[:READ], order[READ:]):
        started = time.perf_counter()
        for row in rows:
            assert len(dataset[row].image or b"") == IMAGE_BYTES
        seconds.append(time.perf_counter() - started)
    return seconds


def measure(root: Path, path: Path) -> dict[str, float]:
    """Both passes with the package of a checkout, in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), f"{root}/kernels"])}
    answer = subprocess.run(
        [sys.executable, __file__, "--rows-of", str(path)],
        cwd=root,
        env=environment,
        check=True,
        capture_output=True,
    )
    first, later = json.loads(answer.stdout)
    return {"first 1,000 rows": round(first, 3), "next 1,000 rows": round(later, 3)}


def main() -> None:
    """Measure and write, or print without `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="checkout to measure")
    parser.add_argument("--before", type=Path, help="result of an earlier run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows-of", type=Path, help=argparse.SUPPRESS)  # the measured process
    arguments = parser.parse_args()
    if arguments.rows_of:
        print(json.dumps(read_shuffled(arguments.rows_of)))
        return
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "file": f"{ROWS} rows of {IMAGE_BYTES} bytes in row groups of {ROW_GROUP}",
        "unit": "seconds",
    }
    if arguments.before:
        result["before"] = json.loads(arguments.before.read_text())["shuffled"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        write_file(path)
        result["shuffled"] = measure(arguments.root.resolve(), path)
        result["pyarrow, every row group once"] = round(read_groups(path), 3)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
