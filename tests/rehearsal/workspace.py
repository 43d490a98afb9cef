"""The working folder of a rehearsal: the checkout's code and workflow by links, a copy of its configuration.

Downloads, pins and results lie in it, so the checkout's own `config/sources.lock`, `data/` and `results/` are never
touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from reca.core.artifacts import read_json, read_manifest
from reca.sources.fetch import LOCK_FILE

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("reca", "kernels", "workflow", "slurm", "weights", "environment.yml", "pyproject.toml")
# The caller's accounts and settings, of which a user's shell has none; without bytecode every job would compile anew.
OWN = ("PYTEST", "PYTHONDONTWRITEBYTECODE", "SNAKEMAKE", "RECA", "HF_", "SLURM", "OPENAI")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
LOGS = "rehearsal-logs"


def ends_with_parent() -> None:
    """In a new process: die with the parent, without whose servers a run could only fail.

    By SIGKILL: after a gentler signal Snakemake would wait for its jobs, and the next run for Snakemake.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Workspace:
    """A folder, and the environment of the commands that run in it."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, root: Path) -> Workspace:
        """Create the folder, or bring its configuration up to date; its pins and results stay."""
        root.mkdir(parents=True, exist_ok=True)
        for name in LINKS:
            if not (root / name).is_symlink():
                (root / name).symlink_to(ROOT / name)
        shutil.copytree(
            ROOT / "config",
            root / "config",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(LOCK_FILE.name),
        )
        return cls(root.resolve())

    @property
    def environment(self) -> dict[str, str]:
        """That of a user who has activated the environment in a clone; nothing of the caller's accounts."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(OWN)}
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        code = os.pathsep.join([str(self.root), str(self.root / "kernels")])
        return {**kept, "PATH": path, "PYTHONPATH": code, "OMP_NUM_THREADS": "1", **self.variables}

    def run(self, *command: str, log: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is in the result, and in a file of that name if `log` is given."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, check=False, preexec_fn=ends_with_parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if log is not None:
            self.log(log).write_text(done.stdout)
        return done

    def log(self, name: str) -> Path:
        folder = self.root / LOGS
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    def unpinned(self, sources: set[str]) -> list[str]:
        """Those of the sources that the lock does not have."""
        lock = self.root / LOCK_FILE
        known = read_json(lock)["sources"] if lock.is_file() else {}
        return sorted(sources - known.keys())

    def hashes(self, experiment: str) -> dict[str, dict[str, str]]:
        """sha256 of every output of every stage of an experiment, by folder; the report's page holds times."""
        manifests = (self.root / "results" / experiment).rglob("manifest.json")
        folders = [path.parent for path in manifests if path.parent.name != "report"]
        return {
            str(folder.relative_to(self.root)): {
                name: record["sha256"] for name, record in read_manifest(folder)["outputs"].items()
            }
            for folder in sorted(folders)
        }
