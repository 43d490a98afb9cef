"""What a command imports before it works: modules that cost seconds, where they are not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "diffusers", "pandas", "scipy", "matplotlib")
PLANNING = (
    "from reca.config.compose import load; from reca.config.validate import sources_of, needed_data;"
    "from reca.sources.fetch import list_sources; from reca.commands.code import stage_code;"
    "import reca.models, reca.evaluation.registry, reca.core.artifacts, reca.core.structure;"
    "load('laptop')"
)
PATHS = {
    "the command line": ("import reca.cli", (*HEAVY, "hydra", "numpy", "requests")),
    "the plan": (PLANNING, HEAVY),
    "BAGEL": (
        "import reca.models.bagel.model",
        ("diffusers.models.autoencoders", "diffusers.models.unets", "matplotlib"),
    ),
    "OpenUni": (
        "import reca.models.openuni.model",
        ("diffusers.pipelines", "diffusers.loaders", "matplotlib"),
    ),
    "Harmon": ("import reca.models.harmon.model", ("diffusers", "matplotlib")),
    "Show-o": ("import reca.models.showo.model", ("diffusers", "matplotlib")),
}


@pytest.mark.parametrize("path", PATHS)
def test_nothing_heavy_is_imported_that_is_not_needed(path: str) -> None:
    code, unwanted = PATHS[path]
    found = f"{code}\nimport sys; print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
