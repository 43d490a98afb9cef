"""OpenUni's frozen side: images to latents and understanding embeddings, latents back to images.

Source: docs/reference/openuni.md b1, c and a5. Letters: B images, C latent channels, S side of the ViT's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from reca.core.finite import rows_of
from reca.models.common.batching import chunks, moved, prepare_each
from reca.models.common.digest import Fingerprints
from reca.models.common.pixels import square, to_picture, to_pixels
from reca.models.openuni.config import Crop, OpenUniConfig, OpenUniOptions, VaeConfig

if TYPE_CHECKING:
    from reca.models.contract import Features, Use
    from reca.models.openuni.network import OpenUni

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


# ---- pixels ---------------------------------------------------------------------------------------
def prepared(image: Image.Image, side: int, crop: Crop) -> Image.Image:
    """The square image that is generated (openuni.md b1): cut along its longer side, then resized with PIL's bicubic.

    The official code cuts anywhere; `seeded` places depend on the image's pixels, so that a cache may hold the result.
    """
    if crop == "stretch":
        return square(image, side, None)
    free = abs(image.width - image.height)
    offset = free // 2
    if crop == "seeded":
        found = hashlib.sha256(image.convert("RGB").tobytes()).digest()
        offset = int.from_bytes(found[:8], "big") % (free + 1)
    return square(image, side, offset)


def vit_input(pixels: Tensor, side: int) -> Tensor:
    """ViT inputs [B, 3, S, S] of pixels [B, 3, H, W] in [-1, 1]: normalised, then resized bilinearly, no antialias."""
    mean, std = (
        moved(torch.tensor(values).view(3, 1, 1), pixels.device, pixels.dtype)
        for values in (MEAN, STD)
    )
    normal = ((pixels + 1) / 2 - mean) / std
    return F.interpolate(normal, size=(side, side), mode="bilinear", align_corners=False)


# ---- the autoencoder --------------------------------------------------------------------------------
def build_vae(config: VaeConfig) -> AutoencoderDC:
    """The untrained autoencoder (openuni.md a5)."""
    levels = len(config.channels)
    kinds = ["ResBlock" if i < config.residual else "EfficientViTBlock" for i in range(levels)]
    scales = [() if i < config.residual else (config.multiscale,) for i in range(levels)]
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        attention_head_dim=config.attention_head_dim,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=config.scaling_factor,
    )


class FrozenVae(nn.Module):
    """The DC-AE, never trained here; always float32."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = build_vae(config).requires_grad_(False)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] of pixels [B, 3, H, W] in [-1, 1]; nothing is sampled."""
        pixels = moved(pixels, self.device, torch.float32)
        return self.vae.encode(pixels, return_dict=False)[0] * self.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of scaled latents, not clamped."""
        scaled = moved(latents, self.device, torch.float32) / self.config.scaling_factor
        return self.vae.decode(scaled, return_dict=False)[0]

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Images of scaled latents; large ones one at a time, so that memory does not grow with the batch."""
        small = latents.shape[-1] * self.config.factor <= 64
        found: list[Image.Image] = []
        for part in latents.split(len(latents) if small else 1):
            for pixels in self.decode(part):
                with rows_of([len(found)]):
                    found.append(to_picture(pixels))
        return found

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.vae.parameters()).device


# ---- features ---------------------------------------------------------------------------------------
class Reader:
    """How images become features, for generation and for reading."""

    def __init__(self, config: OpenUniConfig, options: OpenUniOptions) -> None:
        self.config, self.options = config, options
        self._fingerprints = Fingerprints()

    def encode(
        self, network: OpenUni, vae: FrozenVae, images: Sequence[Image.Image], use: Use
    ) -> Features:
        """See `OpenUniModel.encode`."""
        parts = [
            self._chunk(network, vae, chunk, use)
            for chunk in chunks(images, self.options.encode_batch)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chunk(
        self, network: OpenUni, vae: FrozenVae, images: Sequence[Image.Image], use: Use
    ) -> Features:
        seen = self.config.vit.image_size
        if use == "read":
            pixels = self._pixels(images, seen, "stretch")
            return {"understanding": network.read(vit_input(pixels, seen))}
        side, crop = self.config.resolution, self.options.crop
        pixels = self._pixels(images, side, crop)
        found: Features = {"target": vae.latents(pixels)}
        given = vit_input(pixels, seen)
        if self.options.stochastic_depth:
            return found | {"pixels": given}
        return found | {"understanding": network.read(given)}

    @staticmethod
    def _pixels(images: Sequence[Image.Image], side: int, crop: Crop) -> Tensor:
        return torch.stack(prepare_each(lambda i: to_pixels(prepared(i, side, crop)), images))

    def fingerprint(self, network: OpenUni, vae: FrozenVae, use: Use) -> str:
        """Hash of weights and options that `encode(..., use)` depends on."""
        state: dict[str, Tensor] = {}
        options: dict[str, Any] = {"use": use, "vit": asdict(self.config.vit)}
        if use == "read" or not self.options.stochastic_depth:
            vision = ("model.vision_tower.", "model.multi_modal_projector.")
            state = {n: t for n, t in network.lmm.state_dict().items() if n.startswith(vision)}
        if use != "read":
            state |= {f"vae.{name}": tensor for name, tensor in vae.vae.state_dict().items()}
            options |= {
                "vae": asdict(self.config.vae),
                "resolution": self.config.resolution,
                "crop": self.options.crop,
                "stochastic_depth": self.options.stochastic_depth,
            }
        return self._fingerprints.of(state, options)
