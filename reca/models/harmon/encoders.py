"""The frozen part of Harmon: images to latents and back (KL-16 VAE).

Source: docs/reference/harmon.md b and f. Letters: B batch, (m, n) grid of tokens, C their channels: a token is one
latent of the VAE, or with `network.mar.patch` a square of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from reca.core import images as pictures
from reca.core.finite import rows_of
from reca.models.common.autoencoder_kl import AutoencoderKL
from reca.models.common.batching import chunks, moved, prepare_each
from reca.models.common.digest import Fingerprints
from reca.models.common.pixels import to_picture, to_pixels
from reca.models.harmon.config import Drawing, HarmonConfig

if TYPE_CHECKING:
    from reca.models.contract import Use

GREY = (127, 127, 127)


# ---- images to tensors -----------------------------------------------------------------------------
def stretch(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RecA's image, both condition and target: stretched to the square of its long side, then to (height, width)."""
    return _resize(pictures.squash(image, max(image.size)), size)


def crop(image: Image.Image, size: tuple[int, int], offset: int | None = None) -> Image.Image:
    """The text-to-image target: the largest square at `offset` along the long side (centred by default), resized."""
    width, height = image.size
    side = min(width, height)
    at = (max(width, height) - side) // 2 if offset is None else offset
    left, top = (at, 0) if width > height else (0, at)
    return _resize(image.crop((left, top, left + side, top + side)), size)


def pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image for understanding: centred on a grey square of its long side, resized."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return _resize(square, size)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC)


# ---- the autoencoder -------------------------------------------------------------------------------
def build_vae(config: HarmonConfig) -> AutoencoderKL:
    """The (untrained) autoencoder: attention at the encoder's last level and in the middle only."""
    vae = config.vae
    return AutoencoderKL(
        [vae.width * multiplier for multiplier in vae.multipliers],
        resnets=vae.resnets,
        latent_channels=config.mar.latent_channels,
        groups=vae.groups,
        encoder_attention=True,
    )


class FrozenVae(nn.Module):
    """The VAE and the image preprocessing; never trained."""

    def __init__(self, config: HarmonConfig, drawing: Drawing = "stretch", chunk: int = 16) -> None:
        super().__init__()
        self.config, self.drawing, self.chunk = config, drawing, chunk
        self.vae = build_vae(config)
        self.requires_grad_(False)
        self._fingerprints = Fingerprints()

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], use: Use) -> Tensor:
        """Latents [B, m, n, C] of images, preprocessed for the use (harmon.md b)."""
        prepare = self.preparation(use)
        parts = []
        for chunk in chunks(images, self.chunk):
            pixels = torch.stack(
                prepare_each(lambda image: to_pixels(prepare(image, self.config.size)), chunk)
            )
            parts.append(self.latents(moved(pixels, self._device)))
        return torch.cat(parts)

    def preparation(self, use: Use) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
        """The preprocessing of an image to (height, width) for this use."""
        if use == "read":
            return pad
        return {"stretch": stretch, "crop": crop, "pad": pad}[self.drawing]

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Scaled posterior means [B, m, n, C] of pixels [B, 3, H, W], without sampling."""
        pixels = pixels.to(self.vae.dtype)
        mean, _ = self.vae.moments(pixels)
        tokens = F.pixel_unshuffle(mean * self.config.vae.scale, self.config.mar.patch)
        return tokens.permute(0, 2, 3, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of scaled latents [B, m, n, C], not clamped."""
        tokens = latents.to(self.vae.dtype).permute(0, 3, 1, 2)
        unscaled = F.pixel_shuffle(tokens, self.config.mar.patch) / self.config.vae.scale
        if (
            unscaled.device.type == "cpu"
        ):  # convolutions on a CPU are faster in channels-last format
            unscaled = unscaled.contiguous(memory_format=torch.channels_last)
        return self.vae.decode(unscaled)

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Images of scaled latents [B, C, h, w], one at a time: a 512-pixel decode needs gigabytes."""
        found = []
        for row, one in enumerate(latents):
            with rows_of([row]):
                found.append(to_picture(self.decode(one.unsqueeze(0))[0]))
        return found

    def fingerprint(self, use: Use, more: Mapping[str, Tensor] | None = None) -> str:
        """Hash of the weights, sizes and preprocessing that `encode(..., use)` depends on, and of `more` tensors."""
        options: dict[str, object] = {
            "vae": asdict(self.config.vae),
            "size": list(self.config.size),
            "preparation": self.preparation(use).__name__,
        }
        if self.config.mar.patch != 1:  # caches of models without it keep their name
            options["patch"] = self.config.mar.patch
        return self._fingerprints.of({**self.vae.state_dict(), **(more or {})}, options)

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device
