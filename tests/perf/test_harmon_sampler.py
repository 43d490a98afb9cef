"""The sampler's benchmark at laptop size: its transcription of the published loop gives the package's latents."""

from __future__ import annotations

import pytest
import torch

from perf import harmon_sampler as bench
from reca.models.common import packing
from reca.models.harmon.config import parse
from reca.models.harmon.model import HarmonModel
from tests.models import harmon_tiny


@pytest.fixture(scope="module")
def model() -> HarmonModel:
    torch.manual_seed(0)
    built = HarmonModel(*parse(harmon_tiny.network())).eval()
    bench.perturbed(built)
    return built


def sides_of(model: HarmonModel, text: str, monkeypatch: pytest.MonkeyPatch) -> bench.Sides:
    setting = bench.Setting.of(text)
    prompts = [[3 + n] * (4 + 2 * n) for n in range(setting.pictures)]
    texts = prompts[:1] * setting.pictures if setting.same else prompts
    monkeypatch.setattr(bench.Setting, "texts", lambda self: texts)
    monkeypatch.setattr(bench, "schedule", lambda tokens: [(16, 15), (15, 9), (9, 2), (2, 0)])
    return bench.Sides(model, setting)


@pytest.mark.parametrize("text", ["16x1", "16x3", "16x3same"])
@torch.no_grad()
def test_both_sides_draw_the_same(model: HarmonModel, text: str, monkeypatch) -> None:
    monkeypatch.setattr(packing, "LEAST", 0)
    sides = sides_of(model, text, monkeypatch)
    assert len(sides.loops) == (3 if text == "16x3" else 1)
    for number in range(4):
        step = bench.Step(number, sides)
        expected = step.direct()
        assert expected.abs().max() > 0
        error = (step.ours() - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"step {number}: {error}"


@torch.no_grad()
def test_the_package_does_less(model: HarmonModel, monkeypatch) -> None:
    sides = sides_of(model, "16x3", monkeypatch)
    monkeypatch.setattr(bench, "STEPS", 4)
    counted = bench.counted(sides)
    assert counted["direct"]["operations"] > counted["ours"]["operations"] > 0
    assert counted["ratio_of_flops"] > 1


def test_the_nodes_sum_a_loop_exactly() -> None:
    """Two nodes integrate cubic times, and every step counts once."""
    for points in (2, 3, 4):
        steps, weights = bench.nodes(points)
        assert sum(weights) == pytest.approx(64) and steps == sorted(set(steps))
        times = [1 + (step / 64) ** 2 for step in range(64)]
        estimate = sum(w * times[step] for step, w in zip(steps, weights, strict=True))
        assert estimate == pytest.approx(sum(times), rel=0.01)


def test_settings() -> None:
    same = bench.Setting.of("256x4same")
    assert same.batches() == [[0, 1, 2, 3]] and len({tuple(t) for t in same.texts()}) == 1
    mixed = bench.Setting.of("512x2")
    assert mixed.batches() == [[0], [1]] and len(set(map(len, mixed.texts()))) == 2
    for wrong in ("512", "x4", "512x0", "512xfour"):
        with pytest.raises(ValueError, match="pixels x images"):
            bench.Setting.of(wrong)
