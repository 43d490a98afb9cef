"""Golden losses and gradients of the families once more, with the Triton kernels instead of torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What runs in the interpreter. Show-o: the two RecA layouts, a conversation with its open condition, and
# text-to-image; its cases whose sequences are hundreds of tokens long are left to torch.
RUNS = {
    "showo": ("_vq and test_losses_and_gradients", 4),
    "janus": ("test_gradients", 3),
    "bagel": ("test_loss or test_gradients or two_phases", 9),
    "openuni": ("test_reading", 1),
    "harmon": ("i2t and (test_loss_and_gradients or test_every_stored)", 2),
}


@pytest.mark.parametrize("family", RUNS)
def test_golden_losses_with_triton(family: str) -> None:
    chosen, least = RUNS[family]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = sorted((ROOT / "tests/reference").glob(f"test_{family}*.py"))
    losses = [file for file in files if file.stem.endswith("_losses")] or files
    command += [*map(str, losses), "-k", chosen]
    environment = os.environ | {"RECA_TEST_IMPLEMENTATION": "triton"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
