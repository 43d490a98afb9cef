"""Results in the README and docs: tables and a figure, generated from `docs/results/` and never edited by hand.

python -m reca.report.readme --take results/laptop      # adopt a finished run, then rewrite the pages
python -m reca.report.readme                            # rewrite the pages from the adopted numbers

Any finished experiment can be adopted as `docs/results/<name>.json`; those in `PAGES` have a table on a page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reca.core import artifacts
from reca.report import standalone, wording
from reca.report.outcomes import ARMS, AT_BASE, reading

RESULTS = Path("docs/results")
# The page with an experiment's table, relative to the root of the repository.
PAGES = {
    "laptop": Path("README.md"),
    "laptop_harmon": Path("docs/laptop_harmon.md"),
    "laptop_openuni": Path("docs/laptop_openuni.md"),
    "laptop_janus": Path("docs/laptop_janus.md"),
}
BEGIN, END = "<!-- results:begin (make readme) -->", "<!-- results:end -->"
FIGURES = {"laptop": Path("docs/results/laptop.svg")}  # shown on the page of the same experiment
PLOTTED = ("dense", "reconstruction")
SHOWN = ("dense", "geneval_strict", "geneval", "reconstruction", "understanding")
STRICT_ON = "geneval_strict"  # shown where it is primary: with both readings


def adopted(experiment: str) -> Path:
    """The file with the adopted numbers of an experiment."""
    return RESULTS / f"{experiment}.json"


def take(results: Path) -> dict[str, Any]:
    """The numbers of a finished experiment and the machine and versions they were computed with, for `docs/results/`.

    Costs are sums over all stages; wall time is from the start of the first stage to the end of the last one.
    """
    runs = [artifacts.read_run(path.parent) for path in sorted(results.rglob(artifacts.RUN))]
    report = artifacts.read_run(results / "report")
    return {
        **artifacts.read_json(results / "report" / "outcomes.json"),
        "made": {
            "commit": report["commit"],
            "versions": report["versions"],
            "machine": report["machine"],
            "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
            "stages": len(runs),
            "peak_memory_mb": round(max(run["memory_bytes"] for run in runs) / 1e6),
        },
    }


def table(results: Mapping[str, Any], source: Path, page: Path) -> str:
    """The Markdown block for `page`: outcomes by arm with intervals over seeds, and the paired gain of RecA.

    With two readings of guidance the cells are those at the base's, and the gain at each arm's own has a column.
    """
    arms = arms_of(results)
    lines = []
    for model in results["models"]:
        both = any(AT_BASE in row for row in model["outcomes"])
        gaps = ["RecA - plain training", *(["the same, own guidance"] if both else [])]
        heads = [*(f"`{arm}`" for arm in arms), *gaps]
        lines += [f"| **{model['name']}** | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row in (r for r in model["outcomes"] if r["name"] in SHOWN):
            if row["name"] == STRICT_ON and not both:
                continue
            cells = [_cell(reading(row)[arm]) for arm in arms]
            found = [_gap(reading(row)), *([_gap(row) if AT_BASE in row else ""] if both else [])]
            lines.append(f"| {' | '.join([row['title'], *cells, *found])} |")
        lines += [*_untrained(model), ""]
    seeds = len(results["models"][0]["outcomes"][0]["reca"]["per_seed"])
    made = results["made"]
    own = " with a base each" if results["models"][0].get("bases", 1) > 1 else ""
    paired = "the last column is"
    if any(AT_BASE in row for row in results["models"][0]["outcomes"]):
        paired = "the last two columns are"
        lines.append("All arms at the guidance that is best for the base on development prompts;")
        lines.append("the last column has each arm at its own best.")
    lines += [
        f"Mean and 95 % t interval over {seeds} seeds{own}; {paired} paired by seed, in bold where",
        f"the interval leaves 0 out. From [{source}]({_link(source, page)}): {made['stages']} stages on",
        f"{made['machine']['cores']} cores, {made['cpu_seconds']} CPU seconds, at most",
        f"{made['peak_memory_mb']} MB each, torch {made['versions']['torch']}.",
    ]
    return "\n".join(lines)


def arms_of(results: Mapping[str, Any]) -> list[str]:
    """The arms that every model has."""
    return [arm for arm in ARMS if all(arm in m["outcomes"][0] for m in results["models"])]


def _untrained(model: Mapping[str, Any]) -> list[str]:
    """A line on the arms that do not count as trained, after the table."""
    found = wording.untrained(model.get("trained", {}))
    return ["", *found] if found else []


def figure(results: Mapping[str, Any]) -> str:
    """The figure of an experiment's main outcomes, as the text of an SVG file."""
    return standalone.panels(results, PLOTTED, tuple(arms_of(results)))


def _link(target: Path, page: Path) -> str:
    """`target` as a link on `page`."""
    return os.path.relpath(target, page.parent)


def _cell(arm: Mapping[str, Any]) -> str:
    low, high = arm["ci95"] or (arm["mean"], arm["mean"])
    return f"{arm['mean']:.3f} ± {(high - low) / 2:.3f}"


def _gap(outcome: Mapping[str, Any]) -> str:
    gap = outcome["differences"]["reca - sft"]
    low, high = gap["ci95"] or (gap["mean"], gap["mean"])
    text = f"{gap['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if gap["significant"] else text


def rewritten(text: str, block: str, page: Path) -> str:
    """The text of `page` with `block` between its two markers; ValueError if a marker is missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: must contain exactly one {BEGIN!r} and one {END!r}; add them")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Adopt a run if requested, then rewrite the pages from the adopted numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--take", type=Path, metavar="DIR", help="results of a finished experiment")
    arguments = parser.parse_args()
    if arguments.take:
        artifacts.write_json(adopted(arguments.take.name), take(arguments.take))
    for experiment, page in PAGES.items():
        source = adopted(experiment)
        if not source.is_file():  # nothing adopted: the page keeps its text
            continue
        block = table(artifacts.read_json(source), source, page)
        artifacts.write_atomic(page, rewritten(page.read_text(), block, page))
        if experiment in FIGURES:
            artifacts.write_atomic(FIGURES[experiment], figure(artifacts.read_json(source)))


if __name__ == "__main__":
    main()
