"""`align.compile`: the same training up to rounding, with recomputation, over a resume, under the same names.

Sharded, it runs in test_distributed.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reca.align import distributed
from reca.align.batches import FeatureData
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from tests.align.runs import assert_same_run, run, tensors_of
from tests.align.test_harmon import Rows
from tests.models import showo_tiny

CHANGED = {"steps": 4, "activation_checkpointing": True, "checkpoint_every": 2, "warmup": 1}
COMPILED = CHANGED | {"compile": True}


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real one where it can run, else what surrounds it."""
    if shutil.which("g++") is None:
        monkeypatch.setattr(distributed, "COMPILER", "aot_eager")
    yield
    torch._dynamo.reset()


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_compiled_run_is_equal_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    eager, _ = run(tmp_path / "eager", changes=CHANGED)
    torch._dynamo.utils.counters.clear()
    whole, _ = run(tmp_path / "whole", changes=COMPILED)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert losses(tmp_path / "eager") != []
    for found, expected in zip(losses(tmp_path / "whole"), losses(tmp_path / "eager"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert whole.state_dict().keys() == eager.state_dict().keys()
    assert tensors_of(tmp_path / "whole").keys() == tensors_of(tmp_path / "eager").keys()
    assert all("forward" not in block.__dict__ for block in whole.blocks)

    torch._dynamo.reset()  # a second session compiles again
    run(tmp_path / "cut", changes=COMPILED, stop_at=2)
    torch._dynamo.reset()
    _, summary = run(tmp_path / "cut", changes=COMPILED)
    assert summary.resumed_from == 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(ValueError, match=r"recipe\.compile: True -> None"):
        run(tmp_path / "cut", changes=CHANGED)


def test_a_family_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show-o, whose attention looks at a layout; without code generation, which takes minutes."""
    monkeypatch.setattr(distributed, "COMPILER", "aot_eager")
    pictures, found = showo_tiny.pictures(4), {}
    for compiled in (False, True):
        model: Any = showo_tiny.model(tmp_path / "words")
        data = FeatureData(
            draw=Rows(model.encode(pictures, "draw")), prompts=["describe the image"]
        )
        recipe = Recipe(
            tasks={"reca": TaskRecipe(1.0, 2)}, steps=2, lr=1e-3, precision="fp32",
            activation_checkpointing=True, compile=compiled,
        )  # fmt: skip
        align(model, data, recipe, seed=0, work_dir=tmp_path / str(compiled), device="cpu")
        found[compiled] = losses(tmp_path / str(compiled))
    for mine, expected in zip(found[True], found[False], strict=True):
        assert mine == pytest.approx(expected, rel=1e-5)
