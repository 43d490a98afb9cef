"""Copies of this repository in which the real commands run, and what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.planner import Planner

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".snakemake", "results", "logs", "build", "work", "dist",
    "*-pytest-*.pyc", "fingerprints.*.json", ".*_cache", "*.egg-info", "golden", "tmp", "cache",
)  # fmt: skip
PLANNER = Planner()


@pytest.fixture(scope="session", autouse=True)
def _planner_ends() -> Iterator[None]:
    yield
    PLANNER.close()


@dataclass
class Checkout:
    """A copy of the repository, and the commands a user types in it."""

    root: Path

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Standard output and error of a command; an unexpected exit status fails the test with them."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**environment), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SNAKEMAKE", "RECA"))
        }
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
        return {
            **kept,
            "PATH": path,
            "PYTHONPATH": f"{self.root}:{self.root}/kernels",
            **quiet,
            **more,
        }

    def snakemake(self, *options: str, experiment: str = "laptop_smoke", **more: str) -> str:
        return self.run("snakemake", *options, "--config", f"experiment={experiment}", **more)

    def look(self, *options: str, check: bool = True, **environment: str) -> str:
        """What `snakemake` says with options that run no job; its start is left out (`planner.py`)."""
        status, said = PLANNER.run(
            options, folder=self.root, environment=self.environment(**environment)
        )
        assert not check or status == 0, f"snakemake {options}\n{said}"
        return said

    def plan(self, experiment: str = "laptop_smoke", **environment: str) -> dict[str, int]:
        """Jobs by rule of a dry run, `all` left out; empty when there is nothing to be done."""
        said = self.look("--dry-run", "--config", f"experiment={experiment}", **environment)
        if "Nothing to be done" in said:
            return {}
        table = said.split("Job stats:")[1].split("total")[0]
        jobs = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        return {name: n for name, n in jobs.items() if name != "all"}

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert text.count(old) >= 1, f"{file} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1))

    def hashes(self, experiment: str = "laptop_smoke") -> dict[str, dict[str, str]]:
        """sha256 of every output of every stage, by folder; the page holds times and is left out."""
        folders = [*self.root.glob("data/*"), *self.root.glob(f"results/{experiment}/**/")]
        found = {}
        for manifest in (folder / "manifest.json" for folder in folders):
            if manifest.is_file() and manifest.parent.name != "report":
                outputs = json.loads(manifest.read_text())["outputs"]
                name = str(manifest.parent.relative_to(self.root))
                found[name] = {file: record["sha256"] for file, record in outputs.items()}
        return found


def copy_to(target: Path, source: Path = ROOT) -> Checkout:
    """A checkout as a user has it: what git tracks or would track, nothing that a run wrote but compiled modules."""
    shutil.copytree(source, target, symlinks=True, ignore=_leave_out)
    return Checkout(target)


def smoke_copy_to(target: Path) -> Checkout:
    """A copy whose smoke experiment trains two arms: a third one's jobs are like theirs, and `make smoke` has it."""
    made = copy_to(target)
    file = "config/experiment/laptop_smoke.yaml"
    made.edit(file, "seeds: [0]\n", "seeds: [0]\narms: [base, reca, sft]\n")
    return made


def _leave_out(folder: str, names: list[str]) -> set[str]:
    left = set(LEFT_OUT(folder, names))
    return left | ({"data", "benchmarks"} & set(names) if Path(folder) == ROOT else set())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh copy; its path has a blank and a letter outside ASCII."""
    return copy_to(tmp_path / "a clone with blänks")


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh copy that tests only look at."""
    return copy_to(tmp_path_factory.mktemp("plans") / "clone")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy in which the smoke experiment ran to its end, on one core."""
    made = smoke_copy_to(tmp_path_factory.mktemp("finished") / "clone")
    made.snakemake("--cores", "1")
    return made


@pytest.fixture
def finished_copy(finished: Checkout, tmp_path: Path) -> Checkout:
    """The finished smoke experiment, times and Snakemake's memory included, to be changed at will."""
    shutil.copytree(finished.root, tmp_path / "clone", symlinks=True)
    return Checkout(tmp_path / "clone")
