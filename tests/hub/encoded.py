"""Files of data sets as bytes, the same each time: pins are made from them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Files = dict[str, bytes]  # by path in a repository or folder
SIDE = 32  # of images, in pixels


def image(seed: int, kind: str = "JPEG", size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """An encoded image of coloured blocks; `size` is width and height."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


def cell(seed: int, kind: str = "JPEG", size: tuple[int, int] = (SIDE, SIDE)) -> dict[str, Any]:
    """An image in the struct of the hub's tables."""
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    return {"bytes": image(seed, kind, size), "path": f"{seed}.{suffix}"}


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def tables(path: str, rows: Sequence[Mapping[str, Any]], count: int = 1) -> Files:
    """A split in `count` tables, as the hub numbers them: `path` is its folder and name, such as `data/test`."""
    return {
        f"{path}-{part:05d}-of-{count:05d}.parquet": parquet(_part(rows, part, count))
        for part in range(count)
    }


def _part(rows: Sequence[Mapping[str, Any]], part: int, count: int) -> Sequence[Mapping[str, Any]]:
    bounds = [len(rows) * edge // count for edge in (part, part + 1)]
    return rows[slice(*bounds)]


def document(content: object) -> bytes:
    return json.dumps(content, indent=4, ensure_ascii=False).encode()


def lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def packed(members: Mapping[str, bytes]) -> bytes:
    """A zip file; its members have the format's first date instead of the current time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()
