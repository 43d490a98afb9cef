"""Harmon's golden answer loss and its gradients once more, with the Triton kernel instead of torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_golden_answer_loss_with_triton() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    chosen = "i2t and (test_loss_and_gradients or test_every_stored)"
    command += ["tests/reference/test_harmon_losses.py", "-k", chosen]
    environment = os.environ | {"RECA_TEST_IMPLEMENTATION": "triton"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 2
