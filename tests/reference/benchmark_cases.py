"""Golden data of the benchmarks' official scoring: where it lies, and which test owns a file.

`benchmarks/golden/*.json` below RECA_REFERENCE_DIR if it is set and has them, else the copy beside this
file. Files are discovered by listing; one that no test claims fails.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.reference import golden_cases

CLAIMS: dict[str, tuple[str, ...]] = {
    "test_benchmark_geneval.py": (
        "geneval_images",
        "geneval_geometry",
        "geneval_summary",
        "geneval_crops",
        "geneval_color_head",
        "geneval_detector_postprocess",
    ),
    "test_benchmark_dpg.py": ("dpg",),
    "test_benchmark_judged.py": ("wise", "imgedit", "gedit", "t2i_compbench"),
    "test_benchmark_understanding.py": ("understanding",),
}


def folder() -> Path:
    """The folder of the golden files."""
    named = golden_cases.root() / "benchmarks" / "golden"
    return named if named.is_dir() else golden_cases.COPY / "benchmarks" / "golden"


def listed() -> list[str]:
    """Names of all golden files."""
    return sorted(path.stem for path in folder().glob("*.json"))


@cache
def load(name: str) -> Any:
    """A golden file; the keys that a test does not know are its own to refuse (`only`)."""
    return json.loads((folder() / f"{name}.json").read_text())


def only(name: str, *keys: str) -> Any:
    """A golden file with exactly these parts beside `about`: a part that no test knows fails."""
    found = load(name)
    assert set(found) - {"about"} == set(keys), f"{name}: parts {sorted(found)}, known {keys}"
    return found
