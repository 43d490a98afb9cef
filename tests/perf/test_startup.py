"""What a command imports before it works: modules that cost seconds, where they are not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reca.models.registry import runnable

ROOT = Path(__file__).parents[2]
LIBRARIES = ("transformers", "diffusers", "pandas", "scipy", "matplotlib")
COMPILER = ("torch._dynamo", "sympy")
PLANNING = (
    "from reca.config.compose import load; from reca.config.validate import sources_of, needed_data;"
    "from reca.sources.fetch import list_sources; from reca.commands.code import stage_code;"
    "import reca.models, reca.evaluation.registry, reca.core.artifacts, reca.core.structure;"
    "load('laptop'); stage_code('align', 'showo')"
)
# Families whose networks are made of model classes of these libraries, which load everything else.
LIBRARY_MODELS = {"janus", "openuni"}
OWN_MODELS = [family for family in runnable() if family not in LIBRARY_MODELS]
PATHS = {
    "the command line": ("import reca.cli", ("torch", *LIBRARIES, "hydra", "numpy", "requests")),
    "the plan": (PLANNING, ("torch", *LIBRARIES)),
    **{
        family: (f"import reca.models.{family}.model", (*LIBRARIES, *COMPILER))
        for family in OWN_MODELS
    },
}
DRAW_AND_ASK = """
from reca.cli import main
from reca.inference.interactive import ask
assert main(["draw", "a red circle", "--out", "{out}", "--model", "{model}"]) == 0
ask("{model}", "{out}", "what color is the circle ?")
"""


def imported(code: str, unwanted: tuple[str, ...]) -> list[str]:
    """Those of the unwanted modules that a process has loaded after running the code."""
    found = f"{code}\nimport sys; print('', *sorted(set({unwanted!r}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("path", PATHS)
def test_nothing_heavy_is_imported_that_is_not_needed(path: str) -> None:
    assert imported(*PATHS[path]) == []


@pytest.mark.parametrize("family", OWN_MODELS)
def test_a_tiny_model_draws_and_answers_without_the_libraries(family: str, tmp_path: Path) -> None:
    model, out = ROOT / f"weights/{family}_tiny", tmp_path / "drawn.png"
    code = DRAW_AND_ASK.format(model=model, out=out)
    assert imported(code, (*LIBRARIES, *COMPILER)) == []
