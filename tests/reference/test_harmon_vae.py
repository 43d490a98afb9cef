"""Harmon's VAE as diffusers' AutoencoderKL, and what pictures become before it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from reca.models.harmon.config import HarmonConfig, VaeConfig
from reca.models.harmon.encoders import FrozenVae, crop, pad, stretch, to_pixels
from tests.reference import golden_cases as golden
from tests.reference.harmon_model import filled_vae


@pytest.mark.parametrize("name", golden.cases("harmon", __file__, "vae*"))
@torch.no_grad()
def test_vae(name: str) -> None:
    described, stored = golden.load("harmon", name)
    config = described["config"]
    vae = VaeConfig(multipliers=tuple(config["vae"]["ch_mult"]), scale=config["vae_scale"])
    harmon = HarmonConfig(vae=vae, resolution=tuple(config["image_hw"]))
    assert harmon.mar.latent_channels == config["vae"]["embed_dim"]
    with torch.device("meta"):
        frozen = FrozenVae(harmon)
    frozen.vae = filled_vae(harmon, described["seed"])
    ours = {
        "moments": torch.cat(frozen.vae.moments(stored["pixel_values"]), dim=1),
        "latents": frozen.latents(stored["pixel_values"]),
        "dec_out": frozen.decode(stored["dec_in"]),
    }
    golden.assert_reproduces(stored, ours, ("pixel_values", "dec_in"))


@pytest.mark.parametrize("name", golden.cases("harmon", __file__, "preprocess*"))
def test_preprocess(name: str) -> None:
    described, stored = golden.load("harmon", name)
    side = described["image_size"]
    compared = 0
    for key, pixels in stored.items():
        number, what = key.split("/")
        if what in ("image_u8", "crop_offset"):
            continue
        image = Image.fromarray(stored[f"{number}/image_u8"].numpy())
        offset = int(stored[f"{number}/crop_offset"])
        made = {
            "recon_stretch": lambda image=image: stretch(image, (side, side)),
            "t2i_crop": lambda image=image, offset=offset: crop(image, (side, side), offset),
            "und_pad": lambda image=image: pad(image, (side, side)),
        }[what]()
        error = (to_pixels(made) - pixels).abs()
        # one grey level on isolated pixels is what another Pillow may differ by
        assert error.max() <= 1 / 127.5 + 1e-6 and (error > 1e-6).float().mean() < 0.01, key
        compared += 1
    assert compared == 3 * len({key.split("/")[0] for key in stored})
