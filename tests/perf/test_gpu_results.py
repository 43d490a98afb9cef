"""docs/gpu.md quotes what was measured, and `reca plan` stays close to it."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reca.align.memory import GIB, RESERVE, footprint, meta_model
from reca.config.compose import load
from reca.config.schema import ModelConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = json.loads((DOCS / "results/h100/published_step.json").read_text())
CHECK = json.loads((DOCS / "results/h100/gpu_check.json").read_text())
TIMED = list(csv.DictReader((DOCS / "results/h100/tiles.csv").read_text().splitlines()))
QUOTED = (
    "best tiles", "triton, before", "dense mask, CUDNN_ATTENTION", "flex_attention", "torch.compile",
    "ours, before", ": eager", ": ours", "flow BAGEL: ours, triton", "flow Harmon: ours, triton",
)  # fmt: skip


def named(row: dict[str, Any]) -> str:
    return f"{row['experiment']} layers {row['layers']} batch {row['batch']['reca']}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_the_page_quotes_each_peak(row: dict[str, Any]) -> None:
    peak = max(step["peak_bytes"] for step in row["steps"]) / GIB
    assert f"{peak:.1f}" in (DOCS / "gpu.md").read_text()


@cache
def model_of(experiment: str, model: str) -> ModelConfig:
    return load(experiment).models[model]


def test_the_page_quotes_each_time_and_its_memory() -> None:
    """The last row of a name: eager cross-entropy was timed beside the kernels before, too."""
    page = (DOCS / "gpu.md").read_text().replace("**", "")
    quoted = {row["name"]: row for row in TIMED if row["name"].endswith(QUOTED)}
    by_interval = [row for row in TIMED if row["name"].endswith("SDPA by intervals")]
    quoted |= {row["name"]: row for row in by_interval if row["options"] == "cost=8192"}
    assert len(quoted) == 42
    for row in quoted.values():
        milliseconds = float(row["device_ms"])
        shown = f"{milliseconds:.3g}" if milliseconds < 10 else f"{milliseconds:.1f}"
        assert f"| {shown}, {int(row['mib']):,} |" in page, row["name"]


def test_the_page_names_each_stage_that_did_not_pass() -> None:
    page = (DOCS / "gpu.md").read_text()
    outcomes = {stage["stage"]: stage["outcome"] for stage in CHECK["stages"]}
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == {
        "graphs", "tests", "align_janus",
    }  # fmt: skip
    for words in (
        "401 passed, 14 failed",
        "**failed**, fixed since",
        "**out of time**",
        CHECK["commit"],
    ):
        assert words in page


def is_whole(row: dict[str, Any]) -> bool:
    """Several steps, of which the later ones hold the optimiser's moments, at the published batch."""
    published = model_of(row["experiment"], row["model"]).align.tasks["reca"].batch
    return len(row["steps"]) > 1 and row["batch"]["reca"] == published


def test_the_plan_is_within_its_reserve_of_what_was_measured() -> None:
    whole = [row for row in ROWS if is_whole(row)]
    assert whole
    for row in whole:
        chosen = model_of(row["experiment"], row["model"])
        network = chosen.network
        if row["layers"] is not None:
            network = {**network, "llm": {**network["llm"], "num_hidden_layers": row["layers"]}}
        planned = footprint(meta_model(chosen.family, network), chosen.align, 1, half=True).total
        measured = max(step["peak_bytes"] for step in row["steps"])
        assert measured * (1 - RESERVE) <= planned <= measured * 1.2, named(row)
