"""CPU seconds of a finished laptop experiment by kind of stage, from the records beside its results.

    make reproduce && python -m perf.laptop_cpu results/laptop --record docs/results/laptop_cpu.json

Stages that ran in a worker do not count imports, which it has done once for all jobs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from reca.core.artifacts import OWNS, RUN, read_json, read_run, write_json


def by_stage(results: Path) -> dict[str, dict[str, float]]:
    """Stages and CPU seconds by kind of stage, longest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for path in sorted(results.rglob(RUN)):
        run = read_run(path.parent)
        found[run[OWNS]["stage"]].append(run["cpu_seconds"])
    longest = sorted(found.items(), key=lambda one: -sum(one[1]))
    return {
        stage: {"stages": len(seconds), "cpu_seconds": round(sum(seconds), 1)}
        for stage, seconds in longest
    }


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder of a finished experiment")
    parser.add_argument("--record", type=Path, help="JSON file that gets them as `by_stage`")
    arguments = parser.parse_args()
    report = read_run(arguments.results / "report")
    found: dict[str, Any] = {"commit": report["commit"][:7], "machine": report["machine"]}
    found["stages"] = by_stage(arguments.results)
    print(json.dumps(found, indent=1))
    if arguments.record:
        known = read_json(arguments.record) if arguments.record.is_file() else {}
        write_json(arguments.record, known | {"by_stage": found})


if __name__ == "__main__":
    main()
