"""Harmon's laptop base model: its VAE, and a model folder with it and an untrained network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reca.core.rng import generator
from reca.models.harmon.config import parse
from reca.models.harmon.encoders import build_vae
from reca.models.harmon.layout import IMAGE_AT
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.network import Harmon, embed_prompts, read_image
from reca.models.harmon.weights import VAE
from reca.models.registry import build_model
from reca.toyworld.pretrain.binding import first_word, values_in
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import TURN_END, build_chat_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "vae.safetensors"
DIVERGENCE = 3e-4  # weight of the KL term, per latent value
_FRONT_END = "generate an image :"  # words of the templates in reca/models/harmon/text.py
_CHUNK = 512


# ---- the VAE -----------------------------------------------------------------------------------------
def vae_loss(vae: Any, images: Tensor, noise: Tensor) -> Tensor:
    """L1 + L2 to the image plus the KL term, with latents sampled from the posterior by `noise` [B, C, m, n].

    No perceptual or adversarial term: the images [B, 3, H, W] are rendered, not photographed.
    """
    mean, log_variance = vae.moments(images)
    log_variance = log_variance.clamp(-30, 20)
    error = vae.decode(mean + torch.exp(0.5 * log_variance) * noise) - images
    divergence = mean.square() + log_variance.exp() - 1 - log_variance
    return error.abs().mean() + error.square().mean() + DIVERGENCE * 0.5 * divergence.mean()


@torch.no_grad()
def standardise(vae: Any, images: Tensor) -> None:
    """Standardise every latent channel over `images` [B, 3, H, W] by changing the 1 x 1 convolutions.

    Decoded images stay the same; latents have the scale of the diffusion head's noise.
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
    """Train the VAE of `network` on world `data`; writes `out/vae.safetensors`, returns the last loss.

    ValueError if the configured scale is not 1, as required by standardised latents.
    """
    config, _ = parse(network)
    if config.vae.scale != 1:
        raise ValueError(
            f"network.vae.scale is {config.vae.scale}; latents are standardised here, set it to 1"
        )
    pictures = read_world(data)
    vae = seeded(lambda: build_vae(config), seed, "vae")
    rows, columns = (side // config.vae.factor for side in config.size)

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

    `parts` is the folder of the stage `vae`. ValueError if the closed vocabulary does not fit the network.
    """
    words = build_chat_tokenizer([*prompts, _FRONT_END])
    model = seeded(lambda: build_model("harmon", network), seed, "network")
    assert isinstance(model, HarmonModel)
    found = (model.config.llm_value("vocab_size"), model.config.end)
    needed = (len(words), words.convert_tokens_to_ids(TURN_END))
    if found != needed:
        raise ValueError(
            f"network.llm.vocab_size and network.end are {found}, but the world's vocabulary "
            f"requires {needed}; change them"
        )
    VAE.load_file(model.frozen.vae, parts["vae"] / FILE)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.read_tokenizer(folder)
    model.save(out)


# ---- values of words and pictures --------------------------------------------------------------------
def attention_values(
    model: HarmonModel, images: Sequence[Image], texts: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], int]:
    """See `binding.Values`; the encoder's buffers, which follow an image's tokens, are left out."""
    read = read_image(model.network, model.encode(images, "read")["latents"])
    seen = _values(model.network, [model.text.reconstruction("")] * len(texts), read)
    told = [model.text.caption(text) for text in texts]
    first = first_word(told[0], model.text.ids([texts[0]])[0])
    height, width = model.config.grid
    tokens = slice(IMAGE_AT, IMAGE_AT + height * width)
    return [v[:, tokens] for v in seen], _values(model.network, told), first


def _values(
    network: Harmon, rows: Sequence[Sequence[int]], read: Tensor | None = None
) -> list[Tensor]:
    """The values [B, T, H] of every layer of the language model, of prompts with their images."""
    embeddings, mask = embed_prompts(network, rows, read)
    return values_in(network.llm.model.layers, lambda: network.hidden(embeddings, mask=mask))
