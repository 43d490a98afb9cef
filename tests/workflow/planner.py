"""Dry runs of Snakemake by a process that has it loaded and forks for each: its start takes longer than a plan.

The process holds nothing of `reca`, so every plan is made by the code of the checkout that is looked at. How the
command itself starts is tested by the tests that run jobs, and by those of odd surroundings (`test_environment.py`).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

# Beside what `import snakemake.cli` loads: what every plan loads, and nothing that a test wants not to be loaded.
ALSO_LOADED = (
    "boto3",
    "docutils.core",
    "hydra.compose",
    "jinja2",
    "jsonschema",
    "omegaconf",
    "smart_open",
)
UNWANTED = {"reca", "torch", "transformers", "diffusers"}


class Planner:
    """The process, started when the first plan is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, options: Sequence[str], *, folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        """`snakemake` with such options in a folder and an environment; its exit status and all that it said."""
        if self._process is None:
            plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__], env=plain, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        process = self._process
        assert process.stdin and process.stdout
        with NamedTemporaryFile() as said:
            asked = {
                "options": list(options),
                "folder": str(folder),
                "environment": dict(environment),
                "said": said.name,
            }
            try:
                print(json.dumps(asked), file=process.stdin, flush=True)
                status = int(process.stdout.readline())
            except (
                BaseException
            ):  # pytest's time limit, too: a late answer would be taken for the next plan's
                process.kill()
                self.close()
                raise
            return status, said.read().decode()

    def close(self) -> None:
        """End the process; the next plan starts another."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def serve() -> None:
    """Answer every line of standard input, which asks for one run, with the run's exit status."""
    from importlib import import_module

    from snakemake.cli import main

    for name in ALSO_LOADED:
        import_module(name)
    gc.freeze()  # what a fork never looks at is never copied
    assert not UNWANTED & sys.modules.keys()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            become(asked)
            sys.exit(main(asked["options"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(asked: Mapping[str, Any]) -> None:
    """Make this process what a shell would have started for the command."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[:0] = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["snakemake", *asked["options"]]
    for stream, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, asked["said"], os.O_WRONLY | os.O_APPEND),
        (2, asked["said"], os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), stream)


if __name__ == "__main__":
    serve()
