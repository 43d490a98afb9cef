"""Harmon's laptop base model: its VAE, and how it and an untrained network become one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca.core.rng import generator
from reca.models.harmon.config import parse
from reca.models.harmon.encoders import build_vae
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.weights import VAE
from reca.models.registry import build_model
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import TURN_END, build_chat_tokenizer

FILE = "vae.safetensors"
DIVERGENCE = 3e-4  # weight of the KL term, per latent number
_FRONT_END = "generate an image :"  # words of the templates in reca/models/harmon/text.py
_CHUNK = 512


# ---- the VAE -----------------------------------------------------------------------------------------
def vae_loss(vae: Any, images: Tensor, noise: Tensor) -> Tensor:
    """L1 + L2 to the image plus the KL term, latents drawn from the posterior with `noise` [B, C, m, n].

    No perceptual or adversarial term: the images [B, 3, H, W] are drawn, not photographed.
    """
    mean, log_variance = vae.moments(images)
    log_variance = log_variance.clamp(-30, 20)
    error = vae.decode(mean + torch.exp(0.5 * log_variance) * noise) - images
    divergence = mean.square() + log_variance.exp() - 1 - log_variance
    return error.abs().mean() + error.square().mean() + DIVERGENCE * 0.5 * divergence.mean()


@torch.no_grad()
def standardise(vae: Any, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over `images` [B, 3, H, W], folded into the 1 x 1 convolutions.

    Decoded images stay the same; the diffusion head then finds latents of the size of its noise.
    """
    means = torch.cat([vae.moments(part)[0] for part in images.split(_CHUNK)])
    mean, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:channels] /= spread.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    before.bias[channels:] -= 2 * spread.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= spread.view(1, -1, 1, 1)


def pretrain_vae(
    network: Mapping[str, Any], recipe: Any, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the VAE of `network` on the world in `data`; writes `out/vae.safetensors`, gives the last loss.

    ValueError where the configured scale is not the 1 that standardised latents have.
    """
    config, _ = parse(network)
    if config.vae.scale != 1:
        raise ValueError(
            f"network.vae.scale is {config.vae.scale}; latents are standardised here, set it to 1"
        )
    pictures = read_world(data)
    vae = seeded(lambda: build_vae(config), seed, "vae")
    rows, columns = config.grid

    def loss(indices: Sequence[int]) -> Tensor:
        drawn = generator(seed, "posterior", *indices)
        shape = (len(indices), config.mar.latent_channels, rows, columns)
        noise = torch.randn(shape, generator=drawn)
        return vae_loss(vae, pictures.pixels[list(indices)], noise)

    last = fit(
        vae,
        loss,
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    standardise(vae, pictures.pixels)
    VAE.save(vae, out / FILE)
    return last


PARTS = {"vae": pretrain_vae}


# ---- the folder --------------------------------------------------------------------------------------
def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with the trained VAE and an untrained network.

    `parts` is the folder of the stage `vae`. ValueError where the closed vocabulary does not fit the network.
    """
    words = build_chat_tokenizer([*prompts, _FRONT_END])
    model = seeded(lambda: build_model("harmon", network), seed, "network")
    assert isinstance(model, HarmonModel)
    found = (model.config.llm_value("vocab_size"), model.config.end)
    needed = (len(words), words.convert_tokens_to_ids(TURN_END))
    if found != needed:
        raise ValueError(
            f"network.llm.vocab_size and network.end are {found}, but the world's words make them {needed}; set them so"
        )
    VAE.load_file(model.frozen.vae, parts["vae"] / FILE)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.read_tokenizer(folder)
    model.save(out)
