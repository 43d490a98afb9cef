"""Show-o's image preparations against those of the official code (showo.md 2)."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from reca.core import images
from reca.models.showo.clip import MEAN, STD
from reca.models.showo.config import CLIP_LARGE_336, PHI_1_5, ShowoConfig
from reca.models.showo.encoders import FrozenEncoders
from reca.models.showo.magvit import MagvitConfig
from tests.reference import golden_cases as golden


def crop_of(described: dict, name: str) -> tuple[slice, ...]:
    """The part of a picture that the case keeps, which its description of the tensor says."""
    spans = re.findall(r"(?:rows|cols) (\d+):(\d+)", described["tensors"][name]["what"])
    return slice(None), *(slice(int(start), int(stop)) for start, stop in spans)


def encoders(side: int) -> FrozenEncoders:
    """Both variants prepare pictures without weights, so a minimal tower is enough."""
    tower = CLIP_LARGE_336 | {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = ShowoConfig(
        llm=PHI_1_5 | {"hidden_size": 32},
        vq=MagvitConfig(ch=32, enc_ch_mult=(1,) * 5, dec_ch_mult=(1,) * 5),
        resolution=side,
        understanding="clip",
        clip_vision=tower,
        projector=(32, 32, 32),
    )
    return FrozenEncoders(config)


@pytest.mark.parametrize("name", golden.cases("showo", __file__, "preprocess*"))
def test_preparations(name: str) -> None:
    described, stored = golden.load("showo", name)
    assert (tuple(described["clip_mean"]), tuple(described["clip_std"])) == (MEAN, STD)
    side = described["config"]["R"]
    picture = Image.fromarray(stored["image_u8"].numpy())
    frozen = encoders(side)
    squashed = images.to_tensor(images.squash(picture, side))
    clip = frozen.clip_crops([picture])[0]
    kept = crop_of(described, "clip336_crop")
    ours = {
        "squash": squashed,
        "shortside_crop": frozen.vq_crops([picture])[0],
        "clip336_crop": clip[kept],
        "cond336_crop": frozen.clip_condition(squashed[None])[0][kept],
    }
    golden.assert_reproduces(stored, ours, inputs=("image_u8",), relative=1e-6)
    golden.assert_number("mean", clip.mean().item(), described["clip336_full_mean"])
    golden.assert_number("std", clip.std().item(), described["clip336_full_std"])
    assert torch.equal(clip, frozen.clip_crops([picture, picture])[1])
