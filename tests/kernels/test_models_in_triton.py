"""Golden losses and gradients of the families once more, with the Triton kernels instead of torch.

And a step of their published recipes: bfloat16 autocast, blocks computed again in the backward pass.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reca.config.compose import load
from tests.align import published

ROOT = Path(__file__).resolve().parents[2]
# What runs in the interpreter. Show-o: the two RecA layouts, a conversation with its open condition, and
# text-to-image; their sum, and cases whose sequences are hundreds of tokens long, are left to torch.
RUNS = {
    "showo": ("_vq and test_losses_and_gradients and not total", 3),
    "janus": ("test_gradients", 3),
    "bagel": ("test_loss or test_gradients or two_phases", 9),
    "openuni": ("test_reading", 1),
    "harmon": ("i2t and (test_loss_and_gradients or test_every_stored)", 2),
}


@pytest.fixture(scope="module")
def golden() -> str:
    """What pytest says of the golden tests of all families: in one process, whose start takes seconds."""
    files: list[Path] = []
    for family in RUNS:
        mine = sorted((ROOT / "tests/reference").glob(f"test_{family}*.py"))
        files += [file for file in mine if file.stem.endswith("_losses")] or mine
    chosen = " or ".join(f"(test_{family} and ({words}))" for family, (words, _) in RUNS.items())
    command = [sys.executable, "-m", "pytest", "--verbose", "-p", "no:cacheprovider"]
    environment = os.environ | {"RECA_TEST_IMPLEMENTATION": "triton"}
    done = subprocess.run(
        [*command, *map(str, files), "-k", chosen],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", RUNS)
def test_golden_losses_with_triton(family: str, golden: str) -> None:
    said = re.findall(
        rf"^tests/reference/test_{family}\w*\.py::.* ([A-Z]+) +\[", golden, re.MULTILINE
    )
    assert set(said) == {"PASSED"} and len(said) >= RUNS[family][1], golden[-5000:]


# OpenUni's RecA step runs none of the kernels. Show-o's text is shorter here, as its 128 tokens take minutes, and its
# micro-batches are single images: packs of several samples are in test_attention.py.
SHOWO = "models.showo_clip_256"
SHORTER = ["network.max_text=12", "align.tasks.reca.batch=1", "align.tasks.i2t.batch=1"]
STEPS = {
    "showo": ("paper_showo_256", "showo_clip_256", [f"{SHOWO}.{words}" for words in SHORTER]),
    "harmon": ("paper_harmon_05b", "harmon_05b", []),
    "janus": ("janus_pro_1b", "janus_pro_1b", []),
    "bagel": ("paper_bagel", "bagel_7b", []),
}


@pytest.mark.parametrize("family", STEPS)
def test_a_published_step_with_triton(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roundings to bfloat16 apart, at most, from the step in torch."""
    name, model, shorter = STEPS[family]
    experiment = load(name, ["scale=tiny", *shorter])
    monkeypatch.setattr(published, "at_scale", lambda named: {name: experiment}[named])
    rehearsal, found = published.Rehearsal(tmp_path), {}
    for implementation in ("torch", "triton"):
        out = rehearsal.train(
            name, model, "reca", {"implementation": implementation},
            steps=1, accumulation=1, activation_checkpointing=True,
        )  # fmt: skip
        found[implementation] = json.loads((out / "log.jsonl").read_text())
    assert experiment.models[model].align.precision == "bf16"
    mine, theirs = found["triton"], found["torch"]
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-3)
    assert mine != theirs
