"""BAGEL's frozen part: images to latent moments and ViT states, latents to images.

Source: docs/reference/bagel.md 2 and 5. Letters: B images, P patches, z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reca.core import images as pictures
from reca.models.bagel import vision
from reca.models.bagel.config import BagelConfig, BagelOptions, ImageSize, VaeConfig
from reca.models.common.batching import chunks, moved, prepare_each
from reca.models.common.digest import Fingerprints

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.bagel.network import Bagel
    from reca.models.contract import Features, Use

# the sections of the configuration that affect the features of each use
_DEPENDS: dict[Use, tuple[str, ...]] = {
    "draw": ("vit", "vae", "resolution", "condition_resolution", "vit_max_num_patch_per_side"),
    "read": ("vit", "read_size", "vit_max_num_patch_per_side"),
    "edit": ("vit", "vae", "resolution", "edit_size", "vit_max_num_patch_per_side"),
}


class FrozenVae(nn.Module):
    """The autoencoder, never trained, always in float32."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = vision.build_vae(config).requires_grad_(False)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> means and log-variances [B, 2z, h, w]."""
        return self.vae.get_submodule("encoder")(moved(pixels, self.device, torch.float32))

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled posterior sample [B, z, h, w], float32."""
        return vision.latents(moments.float(), noise.float(), self.config)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Decode scaled latents [B, z, h, w] to images, one at a time, so that memory does not grow with the batch."""
        small = latents.shape[-1] * latents.shape[-2] <= 64 * 64
        chunks = latents.split(len(latents) if small else 1)
        pixels = [vision.decoded(self.vae, chunk.float(), self.config) for chunk in chunks]
        return pictures.to_images(picture for chunk in pixels for picture in chunk)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vae.get_parameter("encoder.conv_in.weight").device


class Reader:
    """Converts images to features, for generation and understanding."""

    def __init__(self, config: BagelConfig, options: BagelOptions) -> None:
        self.config, self.options = config, options
        self._fingerprints = Fingerprints()

    def encode(self, network: Bagel, vae: FrozenVae, images: Sequence[Image], use: Use) -> Features:
        """See `BagelModel.encode`."""
        size = self.config.read_size
        if use == "read":
            return self.read(network, images, size)
        squares = [pictures.central_square(image) for image in images]
        features: Features = {"target": self.moments(vae, squares, self.config.resolution)}
        if use == "edit":
            return features | self.read(network, squares, self.config.edit_size)
        side = self.config.condition_resolution
        if self.options.condition == "vae":
            features["understanding"] = self.moments(vae, squares, side)
            return features
        return features | self.read(network, squares, ImageSize(side, side))

    def moments(self, vae: FrozenVae, squares: Sequence[Image], side: int) -> Tensor:
        """VAE moments [B, 2C, h, w] of square images at one side."""
        parts = [
            vae.moments(
                torch.stack(
                    prepare_each(lambda i: pictures.to_tensor(pictures.squash(i, side)), chunk)
                )
            )
            for chunk in chunks(squares, self.options.encode_batch)
        ]
        return torch.cat(parts)

    def read(self, network: Bagel, images: Sequence[Image], size: ImageSize) -> Features:
        """Right-padded ViT states [B, P, Dvit] and grids [B, 2]."""
        patch = self.config.vit.patch_size
        pixels = prepare_each(lambda i: vision.prepared(i, size.most, size.least, patch), images)
        grid = torch.tensor([[p.shape[1] // patch, p.shape[2] // patch] for p in pixels])
        rows = [
            states[:real]
            for chunk in chunks(pixels, self.options.encode_batch)
            for states, real in zip(*self._states(network, chunk), strict=True)
        ]
        return {"understanding": vision.padded(rows)[0], "grid": grid}

    def _states(self, network: Bagel, pixels: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """ViT states [B, P, D] of images of mixed sizes [3, H, W], right-padded, and the number of patches of each."""
        patch = self.config.vit.patch_size
        patches, _ = vision.padded([vision.patchify(one, patch) for one in pixels])
        grid = torch.tensor([[p.shape[1] // patch, p.shape[2] // patch] for p in pixels])
        # the ViT's table has the side of the fixed table (bagel.md 2)
        ids, valid = vision.positions(
            grid, patches.shape[1], self.config.vit_max_num_patch_per_side
        )
        device = network.vae2llm.weight.device
        known = None if valid is None else moved(valid, device)
        states = network.vit_model(moved(patches, device), moved(ids, device), known)
        return states, grid.prod(dim=1).tolist()

    # ---- identity --------------------------------------------------------------------------------
    def fingerprint(self, network: Bagel, vae: FrozenVae, use: Use) -> str:
        """Hash of the weights and options that `encode(..., use)` depends on."""
        state: dict[str, Tensor] = {}
        if use != "draw" or self.options.condition == "vit":
            state |= {f"vit.{k}": v for k, v in network.vit_model.state_dict().items()}
        if use != "read":
            state |= {f"vae.{k}": v for k, v in vae.vae.state_dict().items()}
        described = asdict(self.config)
        options = {name: described[name] for name in _DEPENDS[use]}
        options |= {"use": use, "condition": self.options.condition}
        return self._fingerprints.of(state, options)
