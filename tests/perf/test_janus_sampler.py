"""The sampler's benchmark at laptop size: its transcription of the published loop gives the package's codes."""

from __future__ import annotations

import pytest
import torch

from perf import janus_sampler as bench
from reca.models.janus.config import parse
from reca.models.janus.network import Janus
from tests.models import janus_tiny


@pytest.mark.parametrize("text", ["3x1", "1x3", "2x2"])
@torch.no_grad()
def test_both_sides_sample_the_same(text: str) -> None:
    torch.manual_seed(0)
    network = Janus(parse(janus_tiny.network())[0]).eval()
    setting = bench.Setting.of(text)
    found = bench.measured_step(network, setting, past=5, repeats=1)
    assert found["relative_difference"] < 1e-4


@torch.no_grad()
def test_a_step_can_be_measured_again() -> None:
    torch.manual_seed(0)
    network = Janus(parse(janus_tiny.network())[0]).eval()
    sides = bench.Sides(network, bench.Setting.of("2x1"), past=3)
    for side in (sides.direct, sides.ours):
        first = side()
        sides.back()
        assert all(torch.equal(a, b) for a, b in zip(first, side(), strict=True))
        sides.back()


@pytest.mark.parametrize("text", ["4", "x2", "0x1", "laptop"])
def test_settings_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="write prompts x images"):
        bench.Setting.of(text)
