"""docs/gpu.md quotes what was measured, and `reca plan` stays close to it."""

from __future__ import annotations

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


def named(row: dict[str, Any]) -> str:
    return f"{row['experiment']} layers {row['layers']} batch {row['batch']['reca']}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_the_page_quotes_each_peak(row: dict[str, Any]) -> None:
    peak = max(step["peak_bytes"] for step in row["steps"]) / GIB
    assert f"{peak:.1f}" in (DOCS / "gpu.md").read_text()


@cache
def model_of(experiment: str, model: str) -> ModelConfig:
    return load(experiment).models[model]


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
