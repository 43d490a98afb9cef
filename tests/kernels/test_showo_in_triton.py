"""Show-o's golden losses and gradients once more, with the Triton kernels instead of torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_golden_losses_with_triton() -> None:
    # the two RecA layouts, a conversation with its open condition, and text-to-image; all in
    # the interpreter, so the cases whose sequences are hundreds of tokens long are left to torch
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/reference/test_showo_losses.py", "-k", "_vq and test_losses_and_gradients"]
    environment = os.environ | {"RECA_TEST_IMPLEMENTATION": "triton"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 4
