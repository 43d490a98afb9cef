"""BAGEL's frozen side: pictures to latent moments and ViT states, latents back to pictures.

Source: docs/reference/bagel.md 2 and 5. Letters: B pictures, P patches, z latent channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from reca.core import images as pictures
from reca.models.bagel import vision
from reca.models.bagel.config import BagelConfig, BagelOptions, ImageSize, VaeConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.bagel.network import Bagel
    from reca.models.contract import Features, Use


T = TypeVar("T")


class FrozenVae(nn.Module):
    """The autoencoder, never trained here; always float32."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = vision.build_vae(config).requires_grad_(False)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> means and log-variances [B, 2z, h, w]."""
        return vision.moments(self.vae, pixels.to(self.device, torch.float32))

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled posterior sample [B, z, h, w], float32."""
        return vision.latents(moments.float(), noise.float(), self.config)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Pictures of scaled latents [B, z, h, w]; one at a time, so that memory does not grow with the batch."""
        small = latents.shape[-1] * latents.shape[-2] <= 64 * 64
        chunks = latents.split(len(latents) if small else 1)
        pixels = [vision.decoded(self.vae, chunk.float(), self.config) for chunk in chunks]
        return pictures.to_images(picture for chunk in pixels for picture in chunk)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.vae.get_parameter("encoder.conv_in.weight").device


def positions(grid: Tensor, length: int, side: int) -> tuple[Tensor, Tensor | None]:
    """Position ids [B, P] of padded patches on grids [B, 2], and which are real, [B, P] (None: all)."""
    grids = [(int(high), int(wide)) for high, wide in grid.tolist()]
    if len(set(grids)) == 1 and grids[0][0] * grids[0][1] == length:
        return vision.position_ids(grids[0], side).expand(len(grids), -1), None
    ids, valid = vision.padded([vision.position_ids(one, side) for one in grids])
    missing = length - ids.shape[1]
    return nn.functional.pad(ids, (0, missing)), nn.functional.pad(valid, (0, missing))


class Reader:
    """How pictures become features, for drawing and for reading."""

    def __init__(self, config: BagelConfig, options: BagelOptions) -> None:
        self.config, self.options = config, options
        self._fingerprints: dict[Use, tuple[tuple[int, ...], str]] = {}

    def encode(self, network: Bagel, vae: FrozenVae, images: Sequence[Image], use: Use) -> Features:
        """See `BagelModel.encode`."""
        size = self.config.read_size
        if use == "read":
            return self.read(network, images, size)
        squares = [vision.central_square(image) for image in images]
        found: Features = {"target": self.moments(vae, squares, self.config.resolution)}
        if use == "edit":
            return found | self.read(network, squares, self.config.edit_size)
        side = self.config.condition_resolution
        if self.options.condition == "vae":
            found["understanding"] = self.moments(vae, squares, side)
            return found
        return found | self.read(network, squares, ImageSize(side, side))

    def moments(self, vae: FrozenVae, squares: Sequence[Image], side: int) -> Tensor:
        """VAE moments of square pictures at one side."""
        parts = [
            vae.moments(torch.stack([pictures.to_tensor(pictures.squash(i, side)) for i in chunk]))
            for chunk in self._chunks(squares)
        ]
        return torch.cat(parts)

    def read(self, network: Bagel, images: Sequence[Image], size: ImageSize) -> Features:
        """ViT states [B, P, Dvit] with padding behind, and grids [B, 2]."""
        patch = self.config.vit.patch_size
        pixels = [vision.prepared(image, size.most, size.least, patch) for image in images]
        grid = torch.tensor([[p.shape[1] // patch, p.shape[2] // patch] for p in pixels])
        rows = [
            states[:real]
            for chunk in self._chunks(pixels)
            for states, real in zip(*self._states(network, chunk), strict=True)
        ]
        return {"understanding": vision.padded(rows)[0], "grid": grid}

    def _states(self, network: Bagel, pixels: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        patch = self.config.vit.patch_size
        patches, _ = vision.padded([vision.patchify(one, patch) for one in pixels])
        grid = torch.tensor([[p.shape[1] // patch, p.shape[2] // patch] for p in pixels])
        # the ViT's own table has the side of the fixed one (bagel.md 2)
        ids, valid = positions(grid, patches.shape[1], self.config.vit_max_num_patch_per_side)
        device = network.vae2llm.weight.device
        moved = None if valid is None else valid.to(device)
        states = network.vit_model(patches.to(device), ids.to(device), moved)
        return states, grid.prod(dim=1).tolist()

    def _chunks(self, items: Sequence[T]) -> list[Sequence[T]]:
        step = self.options.encode_batch
        return [items[start : start + step] for start in range(0, len(items), step)]

    # ---- identity --------------------------------------------------------------------------------
    def fingerprint(self, network: Bagel, vae: FrozenVae, use: Use) -> str:
        """Hash of weights and options that `encode(..., use)` depends on; kept until a weight changes."""
        state: dict[str, Tensor] = {}
        if use != "draw" or self.options.condition == "vit":
            state |= {f"vit.{k}": v for k, v in network.vit_model.state_dict().items()}
        if use != "read":
            state |= {f"vae.{k}": v for k, v in vae.vae.state_dict().items()}
        versions = tuple(n for t in state.values() for n in (t.data_ptr(), t._version))
        if use not in self._fingerprints or self._fingerprints[use][0] != versions:
            self._fingerprints[use] = (versions, self._hash(use, state))
        return self._fingerprints[use][1]

    def _hash(self, use: Use, state: dict[str, Tensor]) -> str:
        names = ["vit", "read_size", "vit_max_num_patch_per_side"]
        if use == "draw":
            names = ["vit", "vae", "resolution", "condition_resolution"]
        if use == "edit":
            names = ["vit", "vae", "resolution", "edit_size", "vit_max_num_patch_per_side"]
        described = asdict(self.config)
        options = {"use": use, "condition": self.options.condition} | {
            n: described[n] for n in names
        }
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for name in sorted(state):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
