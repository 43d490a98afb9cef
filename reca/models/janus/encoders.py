"""Janus-Pro's frozen modules: SigLIP, which encodes input images, and the VQ model, from images to codes and back.

Source: docs/reference/janus.md a, b and g1. Letters: B batch, R resolution, N codes, C channels of a code,
K codebook size, P patches, W width of SigLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVisionModel, JanusVQVAE

from reca.core import images as pictures
from reca.models.common.batching import encode_in_chunks, moved, prepare_each
from reca.models.common.digest import Fingerprints
from reca.models.janus.config import JanusConfig

if TYPE_CHECKING:
    from reca.models.contract import Features, Use

_GREY = (127, 127, 127)  # padding of images that are not square
_LEAST = 14  # minimum length in pixels of a resized side


class FrozenEncoders(nn.Module):
    """The SigLIP tower and the VQ model, always frozen; `chunk` images are encoded per pass."""

    def __init__(self, config: JanusConfig, chunk: int = 16) -> None:
        super().__init__()
        self.config, self.chunk = config, chunk
        self.vision_model = vision_tower(config)
        self.vqmodel = vq_model(config)
        self.requires_grad_(False)
        self._fingerprints = Fingerprints()

    # ---- images to features --------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], use: Use) -> Features:
        """Encode images for generation or understanding.

        `draw`: codes `target` [B, N] and SigLIP features `understanding` [B, P, W] of the same square crop; `read`:
        `understanding` of the whole image, padded to a square.
        """
        one = self._draw if use == "draw" else self._read
        return encode_in_chunks(one, images, self.chunk)

    def _draw(self, images: Sequence[Image.Image]) -> Features:
        side = self.config.resolution
        pixels = self._stack(images, lambda image: pictures.short_side_crop(image, side))
        small = torch.int16 if self.config.vq.num_embeddings <= 2**15 else torch.int32
        return {"target": self.codes(pixels).to(small), "understanding": self.features(pixels)}

    def _read(self, images: Sequence[Image.Image]) -> Features:
        side = self.config.resolution
        return {
            "understanding": self.features(self._stack(images, lambda image: padded(image, side)))
        }

    def features(self, pixels: Tensor) -> Tensor:
        """SigLIP features [B, P, W] after the final LayerNorm, of pixels [B, 3, R, R] in [-1, 1] (janus.md c)."""
        return self.vision_model(pixel_values=pixels).last_hidden_state

    def codes(self, pixels: Tensor) -> Tensor:
        """Codes [B, N] in row-major order, of pixels [B, 3, R, R] in [-1, 1]."""
        return nearest(self.latents(pixels), self.vqmodel.quantize.embedding.weight)

    def latents(self, pixels: Tensor) -> Tensor:
        """Latents [B, C, h, w] before quantisation, of pixels [B, 3, R, R]."""
        return self.vqmodel.quant_conv(self.vqmodel.encoder(pixels))

    # ---- codes to images -----------------------------------------------------------------------------
    @torch.no_grad()
    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Images of codes [B, N], decoded `chunk` at a time."""
        parts = moved(codes.long(), self._device).split(self.chunk)
        return pictures.to_images(torch.cat([self.vqmodel.decode(part) for part in parts]))

    # ---- identity ------------------------------------------------------------------------------------
    def fingerprint(self, use: Use) -> str:
        """Hash of the weights and sizes that `encode(..., use)` depends on, cached until a weight changes."""
        state = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if use == "draw" or name.startswith("vision_model.")
        }
        described = asdict(self.config)
        names = ("resolution", "vision", "vq")
        return self._fingerprints.of(
            state, {"use": use} | {name: described[name] for name in names}
        )

    @property
    def _device(self) -> torch.device:
        return self.vqmodel.quantize.embedding.weight.device

    def _stack(
        self, images: Sequence[Image.Image], cut: Callable[[Image.Image], Image.Image]
    ) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] on the encoders' device and in their dtype."""
        dtype = self.vqmodel.quantize.embedding.weight.dtype
        pixels = torch.stack(prepare_each(lambda image: pictures.to_tensor(cut(image)), images))
        return moved(pixels, self._device, dtype)


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Codes [B, h * w] of latents [B, C, h, w] by largest cosine similarity; codebook [K, C].

    transformers' `encode` omits the normalisation (janus.md g1).
    """
    directions = F.normalize(latents.flatten(2).transpose(1, 2), dim=-1)
    return (directions @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)


def padded(image: Image.Image, side: int) -> Image.Image:
    """Resize the long side to `side` (bicubic, antialiased) and pad to a square with grey (janus.md b)."""
    scale = side / max(image.size)
    width, height = (max(round(length * scale), _LEAST) for length in image.size)
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), _GREY)
    square.paste(scaled, ((side - width) // 2, (side - height) // 2))
    return square


def vision_tower(config: JanusConfig) -> JanusVisionModel:
    """The (untrained) SigLIP tower of a configuration."""
    tower = JanusVisionModel(
        JanusVisionConfig(
            **asdict(config.vision), image_size=config.resolution, projection_dim=config.width
        )
    )
    tower.set_attn_implementation("sdpa")
    return tower


def vq_model(config: JanusConfig) -> JanusVQVAE:
    """The (untrained) VQ model of a configuration."""
    sizes = asdict(config.vq) | {"channel_multiplier": list(config.vq.channel_multiplier)}
    return JanusVQVAE(JanusVQVAEConfig(num_patches=config.grid, **sizes))
