"""The stages that a result depends on, found through their manifests: their costs, and the trail of hashes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from reca.core import artifacts

Graph = Mapping[Path, Mapping[str, Any]]  # manifest by folder, in topological order


def walk(folders: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """All stages that `folders` depend on, including themselves; upstream first, then by name.

    Paths are relative to the working directory, like in the manifests.
    """
    found: dict[Path, dict[str, Any]] = {}
    waiting = [_relative(folder) for folder in folders]
    while waiting:
        folder = waiting.pop()
        if folder in found:
            continue
        found[folder] = artifacts.read_manifest(folder)
        waiting.extend(_upstream(found[folder]))

    @cache
    def depth(folder: Path) -> int:
        return 1 + max((depth(other) for other in _upstream(found[folder])), default=0)

    return {folder: found[folder] for folder in sorted(found, key=lambda f: (depth(f), f))}


def _relative(path: str | Path) -> Path:
    return Path(os.path.relpath(path))


def _upstream(manifest: Mapping[str, Any]) -> list[Path]:
    """Folders of the stages whose files were read; other inputs are the user's files or part of this repository."""
    folders = {_relative(entry["path"]).parent for entry in manifest["inputs"].values()}
    return sorted(folder for folder in folders if (folder / artifacts.MANIFEST).is_file())


def costs(graph: Graph) -> list[dict[str, Any]]:
    """Total wall and CPU seconds and maximum memory by kind of stage, from the `run.json` of each stage."""
    rows: dict[str, dict[str, Any]] = {}
    for folder, manifest in graph.items():
        run = artifacts.read_run(folder) if (folder / artifacts.RUN).is_file() else {}
        name = manifest["stage"]
        row = rows.setdefault(
            name, {"stage": name, "jobs": 0, "wall": 0.0, "cpu": 0.0, "memory": 0}
        )
        row["jobs"] += 1
        row["wall"] += run.get("wall_seconds", 0.0)
        row["cpu"] += run.get("cpu_seconds", 0.0)
        row["memory"] = max(row["memory"], run.get("memory_bytes", 0))
    return list(rows.values())


def caches(graph: Graph) -> list[dict[str, Any]]:
    """Use, rows, bytes and encoding time in seconds of the feature caches; those of several bases are one."""
    found: dict[str, dict[str, Any]] = {}
    for folder, manifest in graph.items():
        if manifest["stage"] == "cache":
            about = artifacts.read_json(artifacts.verified(folder / "cache.json"))
            run = artifacts.read_run(folder)
            size = sum(entry["bytes"] for entry in manifest["outputs"].values())
            row = found.setdefault(
                folder.name, {"use": folder.name, "rows": 0, "bytes": 0, "seconds": 0}
            )
            row["rows"] += about["rows"]
            row["bytes"] += size
            seconds = run.get("encode_seconds")
            row["seconds"] = None if None in (seconds, row["seconds"]) else row["seconds"] + seconds
    return list(found.values())


def trail(graph: Graph) -> list[dict[str, Any]]:
    """What each stage read and wrote, by hash, to trace any number back to the data."""
    return [
        {
            "folder": folder.as_posix(),
            "stage": manifest["stage"],
            "seed": manifest["seed"],
            "manifest": artifacts.sha256_file(folder / artifacts.MANIFEST),
            "inputs": sorted(manifest["inputs"]),
            "files": len(manifest["outputs"]),
            "bytes": sum(entry["bytes"] for entry in manifest["outputs"].values()),
            "code": manifest["code"],
        }
        for folder, manifest in graph.items()
    ]
