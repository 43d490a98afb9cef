"""The options of each kind of benchmark: names and types of the keyword arguments of its `grade`.

They are here, below the benchmarks, so that an experiment is refused before anything is sampled or
judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from reca.core.structure import Share, build, problem, suggestion

Reader = Literal["published", "careful"]
READER = {"reader": Reader}
SHARED = {"partial": bool}  # options of all kinds
OPTIONS: dict[str, dict[str, Any]] = {
    "geneval": {"max_overlap": Share},
    "dpg": {"first_row_bug": bool, **READER},
    "wise": {"overall": Literal["unweighted", "weighted"], "sentinels": bool},
    "t2i_compbench": {"aggregation": Literal["ten", "eight"]},
    "imgedit": {"overall": Literal["types", "samples"], "lenient": bool},
    "gedit": {"random_fallback": bool, "seed": int},
    "mme": {
        "flavour": Literal["internvl", "lmms_eval"],
        "overall": Literal["total", "perception", "cognition"],
        **READER,
    },
    "pope": READER,
    "gqa": READER,
    "mmmu": {"random_choice": bool, "letter_rule": bool, "seed": int, **READER},
    "seed": READER,
    "mmbench": {"empty": Literal["A", "B", "C", "D"] | None, "circular": bool, **READER},
    "mmvp": READER,
}


def check_benchmark_options(kind: str, options: Mapping[str, Any], path: str = "") -> None:
    """ValueError for an option that this kind does not have, or a value that it does not take.

    `path` is the key of the options (default: of a benchmark with the name of its kind).
    """
    known = OPTIONS.get(kind, {}) | SHARED
    for name, value in options.items():
        at = f"{path or f'benchmarks.{kind}.options'}.{name}"
        if name not in known:
            raise problem(at, value, f"unknown option; {suggestion(name, known)}")
        build(known[name], value, at)
