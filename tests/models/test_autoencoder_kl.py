"""Our KL autoencoder is diffusers' AutoencoderKL: names, initial weights and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs
from torch import Tensor

from reca.models.common.autoencoder_kl import AutoencoderKL

CONFIGS: dict[str, dict[str, Any]] = {  # those of the families, small, and edges between them
    "bagel": {"widths": (8, 16, 16), "resnets": 2, "groups": 4, "quant_conv": False},
    "harmon": {"widths": (8, 8, 16), "resnets": 2, "groups": 8, "encoder_attention": True},
    "one level": {"widths": (8,), "resnets": 1, "groups": 2},
    "uneven": {"widths": (4, 12, 8, 8), "resnets": 3, "groups": 2, "encoder_attention": True},
}


def _theirs(config: dict[str, Any]) -> Any:
    levels = len(config["widths"])
    last = "AttnDownEncoderBlock2D" if config.get("encoder_attention") else "DownEncoderBlock2D"
    quant = config.get("quant_conv", True)
    return Theirs(
        down_block_types=(*["DownEncoderBlock2D"] * (levels - 1), last),
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config["widths"],
        layers_per_block=config["resnets"],
        norm_num_groups=config["groups"],
        latent_channels=3,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


@pytest.fixture(params=CONFIGS)
def twins(request: pytest.FixtureRequest) -> tuple[AutoencoderKL, Any]:
    """Ours and theirs, both initialised from one seed."""
    config = CONFIGS[request.param]
    torch.manual_seed(7)
    ours = AutoencoderKL(latent_channels=3, **config)
    torch.manual_seed(7)
    return ours, _theirs(config)


def test_names_and_initial_weights_are_those_of_diffusers(
    twins: tuple[AutoencoderKL, Any],
) -> None:
    ours, theirs = (model.state_dict() for model in twins)
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_are_those_of_diffusers(
    twins: tuple[AutoencoderKL, Any], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    ours, theirs = twins[0].to(dtype), twins[1].to(dtype)
    pixels = torch.randn(2, 3, 32, 48).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        posterior = theirs.encode(pixels).latent_dist
        mean, log_variance = ours.moments(pixels)
        latents: Tensor = posterior.mean.contiguous(memory_format=layout)
        images = theirs.decode(latents).sample
        found = torch.cat([mean, log_variance], dim=1)
        pairs = [(found, posterior.parameters), (ours.decode(latents), images)]
    for ours_gives, theirs_gives in pairs:
        wanted = theirs_gives.float()
        error = (ours_gives.float() - wanted).norm() / wanted.norm()
        assert error < (1e-5 if dtype == torch.float32 else 3e-2)
    assert ours.dtype == dtype


def test_gradients_are_those_of_diffusers(twins: tuple[AutoencoderKL, Any]) -> None:
    ours, theirs = twins[0], twins[1]
    pixels = torch.randn(2, 3, 16, 16)
    ours.decode(ours.moments(pixels)[0]).square().sum().backward()
    theirs.decode(theirs.encode(pixels).latent_dist.mean).sample.square().sum().backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-3)
