"""The tuned kernels compiled for GPUs that are not here: no spills, they fit, tensor cores are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100")
# kernel -> times that it is compiled per target: two products of the losses by row; heads of 64, with shared keys and
# their own, of 128, and of 128 in long samples
EXPECTED = {
    "softmax_kernel": 1, "scale_kernel": 1, "log_sum_kernel": 1, "residual_kernel": 1, "product_kernel": 2,
    "error_kernel": 1, "forward_kernel": 4, "query_gradient_kernel": 4,
    "key_gradient_kernel": 4,
}  # fmt: skip
WITHOUT_PRODUCTS = ("softmax_kernel", "scale_kernel")
# what spills, and was the fastest of fourteen over both packs of BAGEL on an H100 (docs/results/h100/tiles.csv)
TIMED = ("block_attention bf16 head 128 key_gradient_kernel sm_90",
         "block_attention bf16 head 128 long key_gradient_kernel sm_90")  # fmt: skip


@pytest.fixture(scope="session")
def report() -> list[dict[str, Any]]:
    """Compiled once, in a process of its own: this one interprets the kernels."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "perf/kernels/static.py", "--json", "--aligned", "--types", "bf16"]
    done = subprocess.run(
        [*command, "--targets", *TARGETS], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(row: dict[str, Any]) -> str:
    return f"{row['case']} {row['kernel']} {row['target']}"


def test_every_kernel_compiles_for_every_target(report: list[dict[str, Any]]) -> None:
    assert [row for row in report if "error" in row] == []
    for target in TARGETS:
        found = [row["kernel"] for row in report if row["target"] == target]
        assert {name: found.count(name) for name in set(found)} == EXPECTED


def test_no_spills_where_tuned(report: list[dict[str, Any]]) -> None:
    tuned = [row for row in report if row["target"] != "sm_100"]
    spilled = [names(row) for row in tuned if row["spills"] or row["stack"]]
    assert [name for name in spilled if name not in TIMED] == []


def test_shared_memory_fits(report: list[dict[str, Any]]) -> None:
    assert [names(r) for r in report if not 0 <= r["shared"] <= r["shared_limit"]] == []


def test_tensor_cores_are_used(report: list[dict[str, Any]]) -> None:
    """On Hopper without those of Ampere, and none that ptxas runs one after another (its warning C7515)."""
    products = [row for row in report if row["kernel"] not in WITHOUT_PRODUCTS]
    assert [names(r) for r in products if not r["matrix_instructions"]] == []
    hopper = [row for row in products if row["target"] == "sm_90"]
    assert [names(r) for r in hopper if r["hmma"] or r["serialised"]] == []


def test_there_are_no_atomics(report: list[dict[str, Any]]) -> None:
    assert [names(r) for r in report if r["atomics"]] == []
