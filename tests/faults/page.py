"""docs/reliability.md, from the figures of a full campaign: `python -m tests.faults.page` writes it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURES, PAGE = Path("docs/results/reliability.json"), Path("docs/reliability.md")

HEAD = """# Reliability: faults tried and their outcomes

Kills, full disks, changed bytes, hostile files, misbehaving servers and judges, unusual environments: for each kind of
fault, how many cases were tried and in how many the package behaved as specified. One command runs all of them and
regenerates this page and [its figures](results/reliability.json) in about {minutes} minutes on two cores:

    make reliability

`make test` runs the same tests with smaller counts, and a test keeps this page consistent with its figures. Random
cases are determined by the seed, except for the times of kills by the clock.
"""


def page(figures: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    kinds = figures["kinds"]
    areas = dict.fromkeys(kind["area"] for kind in kinds)
    parts = [HEAD.format(minutes=max(1, round(figures["wall_seconds"] / 60))), made(figures)]
    parts += [table(area, [kind for kind in kinds if kind["area"] == area]) for area in areas]
    return "\n".join(parts)


def made(figures: Mapping[str, Any]) -> str:
    """The environment of the figures."""
    machine, versions = figures["machine"], figures["versions"]
    kinds = figures["kinds"]
    tried, held = (sum(kind[name] for kind in kinds) for name in ("tried", "held"))
    return (
        f"**{held} of {tried} cases of {len(kinds)} kinds held.** Seed {figures['seed']}, {figures['counts']} counts, "
        f"commit `{figures['commit']}`, {machine['cores']} cores ({machine['system']}, {machine['cpu']}), Python "
        f"{versions['python']}, torch {versions['torch']}, {figures['wall_seconds']:.0f} s.\n\n"
        "Numbers refer to the project's acceptance criteria: R training, D data, S security, W workflow; kinds\n"
        "without a number were added later.\n"
    )


def table(area: str, kinds: list[Mapping[str, Any]]) -> str:
    """The kinds of one area."""
    lines = [
        f"## {area}\n",
        "| | fault | expected | held of tried | seconds | tests |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind['number']} | {kind['fault']} | {kind['holds']} | {kind['held']} of {kind['tried']} "
        f"| {kind['seconds']:.0f} | {', '.join(map(linked, kind['tests']))} |"
        for kind in kinds
    ]
    return "\n".join(lines) + "\n"


def linked(test: str) -> str:
    """A test as a link to its file."""
    path, name = test.split("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})"


def write(figures: Mapping[str, Any], root: Path) -> None:
    """The figures and the page below the checkout's root."""
    (root / FIGURES).write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    (root / PAGE).write_text(page(figures))


if __name__ == "__main__":
    Path(PAGE).write_text(page(json.loads(FIGURES.read_text())))
