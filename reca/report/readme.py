"""Results in the README and docs: tables, a figure and pictures, generated from `docs/results/`, never edited by hand.

python -m reca.report.readme --take results/laptop      # adopt a finished run, then rewrite the pages
python -m reca.report.readme                            # rewrite the pages from the adopted numbers

Any finished experiment can be adopted as `docs/results/<name>.json`; those in `PAGES` have a table on a page, and a
picture of the run's own images, `docs/results/<name>_pictures.png`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.config.compose import load, resolved
from reca.core import artifacts
from reca.report import before_after, standalone, why, wording
from reca.report.collect import chance_levels
from reca.report.figures import NAMES
from reca.report.outcomes import ARMS, BASE_READING, EDITED, reading

RESULTS = Path("docs/results")
# The page with an experiment's table, relative to the root of the repository.
PAGES = {
    "laptop": Path("README.md"),
    "laptop_bagel_bound": Path("docs/laptop_bagel.md"),
    "laptop_showo_bound": Path("docs/laptop_showo.md"),
    "laptop_harmon": Path("docs/laptop_harmon.md"),
    "laptop_harmon_kept": Path("docs/laptop_harmon.md"),
    "laptop_openuni": Path("docs/laptop_openuni.md"),
    "laptop_openuni_kept": Path("docs/laptop_openuni.md"),
    "laptop_openuni_seeds": Path("docs/laptop_openuni.md"),
    "laptop_janus": Path("docs/laptop_janus.md"),
    "laptop_janus_kept": Path("docs/laptop_janus.md"),
    "laptop_edit": Path("docs/laptop_edit.md"),
    "laptop_edit_kept": Path("docs/laptop_edit.md"),
    "laptop_edit_bound": Path("docs/laptop_edit.md"),
}
BEGIN, END = "<!-- {}:begin (make readme) -->", "<!-- {}:end -->"
TABLE, PICTURE = "results", "picture"  # what stands between two markers of this name
# The README's comparison of families: all recorded runs with captions kept, their families and what these draw.
FAMILIES = {
    "laptop_bagel_bound": ("BAGEL", "rectified flow; reader frozen"),
    "laptop_openuni_seeds": ("OpenUni", "diffusion; reader frozen"),
    "laptop_openuni_kept": ("OpenUni", "an earlier run, another base"),
    "laptop_showo_bound": ("Show-o", "masked tokens; weights shared"),
    "laptop_harmon_kept": ("Harmon", "masked autoregression; weights shared"),
    "laptop_janus_kept": ("Janus-Pro", "next token; weights shared"),
}
OVERVIEW, OVERVIEW_PAGE = "families", Path("README.md")
FIGURES = {"laptop": Path("docs/results/laptop.svg")}  # shown on the page of the same experiment
# The report's three figures on why RecA works.
ARGUMENTS = {"laptop_why": Path("docs/results/laptop_why.svg")}
PLOTTED = ("dense", "geneval_strict", "reconstruction")
SHOWN = ("dense", "geneval_strict", "geneval", "understanding", "reconstruction")
SHOWN_OF_EDITS = (*EDITED, "dense", "dense_placed", "geneval_strict", "geneval", "reconstruction")
GAPS = {"reca - sft": "RecA - plain training", "reca - base": "RecA - base"}
JUDGED = {  # blocks of the picture, in its alternative text
    "reconstruction": "reconstructions",
    "dense": "dense prompts",
    "geneval": "GenEval's tasks",
    "geneval_strict": "GenEval's tasks and nothing more in the image",
}
STRICT_ON = "geneval_strict"  # shown where it is primary: with both readings


def adopted(experiment: str) -> Path:
    """The file with the adopted numbers of an experiment."""
    return RESULTS / f"{experiment}.json"


def pictures_of(experiment: str) -> Path:
    """The file with images of an experiment's adopted run."""
    return RESULTS / f"{experiment}_pictures.png"


def adopt(results: Path) -> None:
    """Write what `docs/results/` keeps of a finished experiment: its numbers, and images where a page shows them."""
    name, found = results.name, take(results)
    if name in PAGES:
        data, about = before_after.picture(results, [model["name"] for model in found["models"]])
        artifacts.write_atomic(pictures_of(name), data)
        found["pictures"] = about
    artifacts.write_json(adopted(name), found)


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


def table(
    results: Mapping[str, Any], source: Path, page: Path, chance: Mapping[str, float] | None = None
) -> str:
    """The Markdown block for `page`: outcomes by arm with intervals over seeds, and the paired gain of RecA.

    `chance` are the levels of the outcomes that have one: what images of random scenes score. With two readings of
    guidance the cells are those at the base's, and the gain at each arm's own has a column. Where edits are scored they
    come first, and RecA is compared with its base, too, which the paper reports for edits.
    """
    lines, gains = [], 1
    for model in results["models"]:
        rows = {row["name"]: row for row in model["outcomes"]}
        arms = [arm for arm in ARMS if arm in model["outcomes"][0]]
        both, edits = _has_both_readings(model), EDITED[0] in rows
        gaps = ["reca - base", "reca - sft"] if edits else ["reca - sft"]
        last = [*(GAPS[gap] for gap in gaps), *(["the same, own guidance"] if both else [])]
        heads = [*(f"`{arm}`" for arm in arms), *(["chance"] if chance else []), *last]
        gains = max(gains, len(last))
        lines += [f"| **{model['name']}** | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row in (rows[name] for name in (SHOWN_OF_EDITS if edits else SHOWN) if name in rows):
            if row["name"] == STRICT_ON and not both:
                continue
            cells = [_cell(reading(row)[arm]) for arm in arms]
            if chance:
                cells.append(f"{chance[row['name']]:.3f}" if row["name"] in chance else "")
            cells += [_gap(reading(row), gap) for gap in gaps]
            if both:
                cells.append(_gap(row, gaps[-1]) if BASE_READING in row else "")
            lines.append(f"| {' | '.join([row['title'], *cells])} |")
        lines += [*_untrained(model), ""]
    made = results["made"]
    count = {1: "column is", 2: "two columns are", 3: "three columns are"}[gains]
    paired = f"the last {count}"
    if any(_has_both_readings(model) for model in results["models"]):
        lines.append("All arms at the guidance that is best for the base on development prompts;")
        lines.append("the last column has each arm at its own best.")
    lines += [
        f"Mean and 95 % t interval over {_seeds(results['models'])}; {paired} paired by seed, in bold where",
        f"the interval leaves 0 out. From [{source}]({_link(source, page)}): {made['stages']} stages on",
        f"{made['machine']['cores']} cores, {made['cpu_seconds']} CPU seconds, at most",
        f"{made['peak_memory_mb']} MB each, torch {made['versions']['torch']}.",
    ]
    return "\n".join(lines)


def overview(page: Path) -> str:
    """The Markdown block that sets the families side by side: RecA - plain training in their recorded runs.

    A run in which RecA or plain training does not count as trained says so, and nothing of it is in bold.
    """
    names = ("dense", "geneval", STRICT_ON, "understanding", "reconstruction")
    heads = ["dense prompts", "the same, own guidance", "GenEval's six", "the same, strict"]
    heads += ["questions", "objects kept"]
    first = "| RecA - plain training | runs | lambda_t2i | steps"
    lines = [f"{first} | {' | '.join(heads)} |", "|---" * (len(heads) + 4) + "|"]
    for experiment, (family, kind) in FAMILIES.items():
        source = adopted(experiment)
        if not source.is_file():
            continue
        (model,) = artifacts.read_json(source)["models"]
        own = {row["name"]: row for row in model["outcomes"]}
        rows = {name: reading(row) for name, row in own.items()}
        shown = [_gap(rows[name], "reca - sft") if name in rows else "" for name in names]
        shown.insert(1, _gap(own[names[0]], "reca - sft"))
        about = f"[**{family}**]({_link(PAGES[experiment], page)}): {kind}"
        count = len(rows["dense"]["base"]["per_seed"])
        runs = f"{count} bases" if model.get("bases", 1) > 1 else f"{count} seeds of one base"
        idle = [NAMES[arm] for arm in ("reca", "sft") if not model["trained"][arm]["trained"]]
        if idle:
            shown = [cell.strip("*") for cell in shown]
            runs += f"; {' and '.join(idle)} not trained"
        (trained,) = load(experiment).models.values()
        recipe = trained.align
        assert recipe is not None  # of an experiment that aligns
        kept = recipe.tasks["t2i"].weight
        lines.append(f"| {' | '.join([about, runs, f'{kept:g}', f'{recipe.steps:,}', *shown])} |")
    return "\n".join(lines)


def _has_both_readings(model: Mapping[str, Any]) -> bool:
    return any(BASE_READING in row for row in model["outcomes"])


def _seeds(models: Sequence[Mapping[str, Any]]) -> str:
    """How many seeds the intervals of each model are over, and whether each has a base of its own."""
    found = {}
    for model in models:
        own = " with a base each" if model.get("bases", 1) > 1 else ""
        found[model["name"]] = f"{len(model['outcomes'][0]['base']['per_seed'])} seeds{own}"
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{seeds} ({name})" for name, seeds in found.items())


def picture(results: Mapping[str, Any], experiment: str, page: Path) -> str:
    """The Markdown block with the images of an adopted run and how they were chosen; empty for a run without any.

    The alternative text counts for each arm how many of the images the examiner accepted.
    """
    if "pictures" not in results:
        return ""
    models = results["pictures"]["models"]
    file, source = pictures_of(experiment), adopted(experiment)
    seeds = sorted({run.rsplit("-", 1)[1] for model in models for run in model["images"]})
    rows = {block["outcome"]: block["rows"] for block in models[0]["blocks"]}
    kinds = {"reconstruction": "held-out images", "dense": "dense prompts"}
    first = [f"the first {rows[name]} {kind}" for name, kind in kinds.items() if name in rows]
    at_base = any(BASE_READING in row for model in results["models"] for row in model["outcomes"])
    strict = ["reconstructions", *(["GenEval's tasks"] if STRICT_ON in rows else [])]
    more = f", and in {' and '.join(strict)} nothing more"
    lines = [
        f"![{' '.join(_counted(model) for model in models)}]({_link(file, page)})",
        "",
        f"*Of the test split {', '.join(first)} and the first prompt of each of GenEval's tasks, none left out;",
        f"seed {' and '.join(seeds)}, at the guidance that is best for {'the base' if at_base else 'each arm'} on",
        f"development prompts. Framed in green: the examiner found everything that was asked for{more}.",
        "The target of a dense prompt is one of the arrangements that it allows. From the recorded run",
        f"[{source}]({_link(source, page)}), which has the hashes of the images.*",
    ]
    return "\n".join(lines)


def _counted(model: Mapping[str, Any]) -> str:
    """One sentence on a model's images for the alternative text."""
    parts = [
        f"{JUDGED[block['outcome']]}: "
        + ", ".join(
            f"{NAMES[arm]} {n}" for arm in ARMS if (n := block["accepted"].get(arm)) is not None
        )
        + f" of {block['rows']}"
        for block in model["blocks"]
    ]
    return f"Images of {model['name']} beside their targets; accepted by the examiner: {'; '.join(parts)}."


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


def chance_of(experiment: str) -> dict[str, float]:
    """The chance level of every outcome of an experiment that has one."""
    levels = chance_levels(resolved(load(experiment))["benchmarks"])
    edits = {name: found["random"] for name, found in levels.items() if "random" in found}
    drawn = [found for name, found in levels.items() if name not in edits]
    return {key: value for found in (*drawn, *edits.values()) for key, value in found.items()}


def argument(experiment: str) -> str:
    """The figures on why RecA works from an experiment's adopted numbers, as the text of an SVG file.

    Chance levels are computed again: they depend on the experiment's configuration only.
    """
    setup, levels = resolved(load(experiment)), chance_of(experiment)
    models = artifacts.read_json(adopted(experiment))["models"]
    parts = why.argument(setup, [model | {"chance": levels} for model in models])
    return standalone.argument(parts)


def _link(target: Path, page: Path) -> str:
    """`target` as a link on `page`."""
    return os.path.relpath(target, page.parent)


def _cell(arm: Mapping[str, Any]) -> str:
    low, high = arm["ci95"] or (arm["mean"], arm["mean"])
    return f"{arm['mean']:.3f} ± {(high - low) / 2:.3f}"


def _gap(outcome: Mapping[str, Any], compared: str) -> str:
    gap = outcome["differences"][compared]
    low, high = gap["ci95"] or (gap["mean"], gap["mean"])
    text = f"{gap['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if gap["significant"] else text


def rewritten(text: str, block: str, page: Path, name: str = TABLE) -> str:
    """The text of `page` with `block` between the two markers of `name`; ValueError if a marker is missing."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page}: must contain exactly one {begin!r} and one {end!r}; add them")
    before, rest = text.split(begin)
    lines = [begin, *([block] if block else []), end]
    return before + "\n".join(lines) + rest.split(end)[1]


def page_text(text: str, experiment: str) -> str:
    """The text of an experiment's page with its table and picture from the adopted numbers."""
    page, source = PAGES[experiment], adopted(experiment)
    results = artifacts.read_json(source)
    block = table(results, source, page, chance_of(experiment))
    shown = rewritten(text, block, page, block_name(TABLE, experiment))
    return rewritten(
        shown, picture(results, experiment, page), page, block_name(PICTURE, experiment)
    )


def block_name(kind: str, experiment: str) -> str:
    """The name in an experiment's markers: the kind of block, and the experiment unless it is the first on its page."""
    first = next(name for name, page in PAGES.items() if page == PAGES[experiment])
    return kind if first == experiment else f"{kind} of {experiment}"


def main() -> int:
    """Adopt a run if requested, rewrite the pages from the adopted numbers; 2 and one line if that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--take", type=Path, metavar="DIR", help="results of a finished experiment")
    arguments = parser.parse_args()
    try:
        if arguments.take:
            adopt(arguments.take)
        _rewrite()
    except (ValueError, OSError) as error:
        print(f"make readme: {error}", file=sys.stderr)
        return 2
    return 0


def _rewrite() -> None:
    for experiment, page in PAGES.items():
        source = adopted(experiment)
        if not source.is_file():  # nothing adopted: the page keeps its text
            continue
        artifacts.write_atomic(page, page_text(page.read_text(), experiment))
        if experiment in FIGURES:
            artifacts.write_atomic(FIGURES[experiment], figure(artifacts.read_json(source)))
    if any(adopted(experiment).is_file() for experiment in FAMILIES):
        text = OVERVIEW_PAGE.read_text()
        shown = rewritten(text, overview(OVERVIEW_PAGE), OVERVIEW_PAGE, OVERVIEW)
        artifacts.write_atomic(OVERVIEW_PAGE, shown)
    for experiment, file in ARGUMENTS.items():
        if adopted(experiment).is_file():
            artifacts.write_atomic(file, argument(experiment))


if __name__ == "__main__":
    sys.exit(main())
