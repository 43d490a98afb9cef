"""Runs the commands of docs/first_run.md and compares what they print with what the page says.

On the page, a block ```` ```sh ```` is a command and the block ```` ```text ```` after it what it prints: these lines
in this order, other lines may come between, and `...` stands for any text. A block ```` ```sh cluster ```` is for a
real cluster only. The one substitution: the page's experiment gets the scale (`paper_x` -> `paper_x-tiny`), in
commands and in what they print; and where there is no Slurm, `--profile slurm` is left out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.rehearsal.usage import Used, used
from tests.rehearsal.workspace import ROOT, Workspace

PAGE = ROOT / "docs/first_run.md"
FENCE = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPERIMENT = re.compile(r"--config experiment=(\w+)")
PROFILE = " --profile slurm"


@dataclass(frozen=True)
class Step:
    """A command of the page, the lines that it prints, and where it is on the page."""

    command: str
    expected: tuple[str, ...]
    line: int


def experiment(page: str | None = None) -> str:
    """The experiment that the page runs."""
    named = EXPERIMENT.search(page or PAGE.read_text())
    if named is None:
        raise ValueError(f"{PAGE}: no command has --config experiment=NAME; the page must run one")
    return named[1]


def steps(page: str) -> list[Step]:
    """Those commands of a page that a rehearsal runs."""
    found: list[Step] = []
    is_run = False
    for match in FENCE.finditer(page):
        language, where, body = match.groups()
        line = page.count("\n", 0, match.start()) + 1
        if language == "sh":
            is_run = where is None
            if is_run:
                found.append(Step(body.strip(), (), line))
        elif language == "text" and is_run and found and not found[-1].expected:
            last = found.pop()
            found.append(Step(last.command, tuple(body.splitlines()), last.line))
    return found


def rehearsed(page: str, scale: str, has_slurm: bool) -> str:
    """The page with the experiment at a scale, and without the profile where there is no Slurm."""
    name = experiment(page)
    page = re.sub(rf"\b{name}\b", f"{name}-{scale}", page)
    return page if has_slurm else page.replace(PROFILE, "")


def absent(expected: tuple[str, ...], said: str) -> str | None:
    """The first of the expected lines that is not among what was said, in order; None if all are."""
    lines = iter(said.splitlines())
    for wanted in filter(lambda text: text.strip() not in ("", "..."), expected):
        pattern = ".*".join(re.escape(part) for part in wanted.rstrip().split("..."))
        if not any(re.fullmatch(pattern, line.rstrip()) for line in lines):
            return wanted
    return None


def run(
    space: Workspace, scale: str, page: str | None = None, slurm: bool = False
) -> Iterator[tuple[Step, Used, str | None]]:
    """Each command of the page with what it used, and what is wrong with it or None; ends after the first fault.

    Variables that a command exports hold for those after it.
    """
    text = rehearsed(page or PAGE.read_text(), scale, slurm and shutil.which("sbatch") is not None)
    exports: list[str] = []
    for number, step in enumerate(steps(text)):
        with used() as spent:
            script = "\n".join([*exports, step.command])
            done = space.run("bash", "-euo", "pipefail", "-c", script)
        log_of(space, number).write_text(f"$ {step.command}\n{done.stdout}")
        exports += [line for line in step.command.splitlines() if line.startswith("export ")]
        wrong = f"exit status {done.returncode}" if done.returncode else None
        if wrong is None and (line := absent(step.expected, done.stdout)) is not None:
            wrong = f"does not print: {line}"
        yield step, spent, wrong
        if wrong is not None:
            return


def log_of(space: Workspace, number: int) -> Path:
    return space.log(f"first_run-{number:02d}")
