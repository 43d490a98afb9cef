"""Similarity of two images by networks with pinned weights: LPIPS (AlexNet), and cosines of CLIP and DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from reca.core.finite import check_weights
from reca.evaluation.detectors.checkpoint import companion, network
from reca.evaluation.detectors.mask2former import CLIP_HARMLESS
from reca.models.checkpoint_io import check_manifest, load_foreign, load_strictly, manifest_of


class Alike(Protocol):
    """A similarity or distance of two images of equal size."""

    def __call__(self, one: Image.Image, other: Image.Image) -> float:
        """For equal images 0 with LPIPS, 1 with a cosine."""


class AlexNet(nn.Module):
    """The five AlexNet activations that LPIPS compares; parameter names are those of the published file."""

    TAPS = (1, 4, 7, 9, 11)  # the ReLUs
    WIDTHS = (64, 192, 384, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> five feature maps [B, C, h, w], C as in `WIDTHS`."""
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.TAPS:
                found.append(x)
        return found


class Lpips(nn.Module):
    """LPIPS 0.1 (alex): weighted squared differences of normalised activations, mean over pixels, sum over layers."""

    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self) -> None:
        super().__init__()
        self.net = AlexNet()
        self.heads = nn.ParameterList(
            [nn.Parameter(torch.ones(1, w, 1, 1)) for w in AlexNet.WIDTHS]
        )

    @classmethod
    def open(
        cls, alexnet: tuple[Path, str | None], heads: tuple[Path, str | None], device: str = "cpu"
    ) -> Lpips:
        """Load the two published files, each given with its sha256; ValueError if a tensor does not fit."""
        model = cls()
        trunk = {n: t for n, t in load_foreign(*alexnet).items() if n.startswith("features.")}
        load_strictly(model.net, trunk, alexnet[0], remedy="fetch source alexnet again")
        found = load_foreign(*heads)
        own = {f"lin{index}.model.1.weight": head.data for index, head in enumerate(model.heads)}
        remedy = "these are not the heads of LPIPS 0.1 (alex); fetch source lpips-alex again"
        check_manifest(heads[0], manifest_of(found), manifest_of(own), remedy=remedy)
        check_weights(heads[0], found.items())
        for name, head in own.items():
            head.copy_(found[name])
        return model.to(device).eval()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Distance of image pairs, two tensors [B, 3, H, W] in [-1, 1] -> [B]."""
        shift, scale = (
            torch.tensor(v, device=one.device)[:, None, None] for v in (self.SHIFT, self.SCALE)
        )
        maps = [self.net((x - shift) / scale) for x in (one, other)]
        total = torch.zeros(len(one), device=one.device)
        for a, b, head in zip(*maps, self.heads, strict=True):
            apart = (_unit(a) - _unit(b)) ** 2
            total = total + (apart * head).sum(1).mean((1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    """Normalise [B, C, H, W] to unit length over channels."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


class LpipsAlike:
    """LPIPS of two images at their original size."""

    def __init__(self, model: Lpips, device: str = "cpu") -> None:
        self.model, self.device = model.to(device).eval(), torch.device(device)

    @torch.no_grad()
    def __call__(self, one: Image.Image, other: Image.Image) -> float:
        """The distance, 0 for equal images."""
        tensors = [
            torch.from_numpy(np.array(i.convert("RGB"), np.float32)).permute(2, 0, 1)[None] / 127.5
            - 1
            for i in (one, other)
        ]
        return float(self.model(*(t.to(self.device) for t in tensors))[0])


class CosineAlike:
    """Cosine similarity of two images' embeddings: CLIP's projected image features, or DINOv2's class token."""

    def __init__(self, model: Any, processor: Any, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model, self.processor = model.to(self.device).eval(), processor

    @classmethod
    def clip(cls, folder: Path, device: str = "cpu") -> CosineAlike:
        """Load CLIP (ViT-L/14) from a folder."""
        from transformers import CLIPImageProcessor, CLIPModel

        model = network(CLIPModel, folder, CLIP_HARMLESS)
        return cls(model, companion(CLIPImageProcessor, folder), device)

    @classmethod
    def dino(cls, folder: Path, device: str = "cpu") -> CosineAlike:
        """Load DINOv2 from a folder."""
        from transformers import AutoImageProcessor, Dinov2Model

        return cls(network(Dinov2Model, folder), companion(AutoImageProcessor, folder), device)

    @torch.no_grad()
    def __call__(self, one: Image.Image, other: Image.Image) -> float:
        """The cosine, 1 for equal images."""
        shown = [self.processor(images=i.convert("RGB"), return_tensors="pt") for i in (one, other)]
        pixels = torch.cat([s["pixel_values"] for s in shown]).to(self.device)
        rows = functional.normalize(self._embeddings(pixels).double(), dim=-1)
        return float((rows[0] * rows[1]).sum())

    def _embeddings(self, pixels: Tensor) -> Tensor:
        """Image embeddings, [B, 3, H, W] -> [B, D]."""
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=pixels)
            return getattr(found, "pooler_output", found)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]
