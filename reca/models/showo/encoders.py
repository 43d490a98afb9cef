"""Show-o's frozen parts: image preprocessing, images to codes and CLIP features, codes to images.

Source: docs/reference/showo.md 2. Letters: B batch, R resolution, N image codes, P CLIP
patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.core import images as pictures
from reca.models.common.batching import encode_in_chunks, moved, prepare_each
from reca.models.common.digest import Fingerprints
from reca.models.showo import clip
from reca.models.showo.config import ShowoConfig
from reca.models.showo.magvit import Magvit

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.contract import Features, Use

_READ_SIDE = 512  # the VQ variant crops what it reads at 512, whatever its resolution


class FrozenEncoders(nn.Module):
    """The MAGVIT-v2 tokenizer and, for the CLIP variant, the CLIP tower; neither is trained."""

    def __init__(self, config: ShowoConfig, chunk: int = 32) -> None:
        super().__init__()
        self.config = config
        self.chunk = chunk
        self.magvit = Magvit(config.vq)
        self.clip = clip.ClipTower(config.tower) if config.understanding == "clip" else None
        self.requires_grad_(False)
        self._fingerprints = Fingerprints()

    # ---- images to features ---------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Use `draw`: target codes [B, N] and RecA's condition; `read`: the condition for questions.

        Condition `understanding`: CLIP features [B, P, Dclip], or codes [B, C]. Codes have the
        smallest signed integer type that represents them.
        """
        one = self._draw if use == "draw" else self._read
        return encode_in_chunks(one, images, self.chunk)

    def _draw(self, images: Sequence[Image]) -> Features:
        side = self.config.resolution
        pixels = self._stack(
            prepare_each(lambda image: pictures.to_tensor(pictures.squash(image, side)), images)
        )
        if self.clip is not None:
            understanding = self.clip(self.clip_condition(pixels))
        else:
            understanding = self.codes(self.vq_condition(pixels))
        return {"target": self.codes(pixels), "understanding": understanding}

    def _read(self, images: Sequence[Image]) -> Features:
        if self.clip is not None:
            return {"understanding": self.clip(self._stack(self.clip_crops(images)))}
        return {"understanding": self.codes(self.vq_crops(images))}

    def codes(self, pixels: Tensor) -> Tensor:
        """Image codes of pixels [B, 3, H, W] in [-1, 1], in the smallest type that represents them."""
        small = torch.int16 if self.config.codebook_size <= 2**15 else torch.int32
        return self.magvit.tokenise(pixels).to(small)

    # ---- preprocessing, one function each so that it can be tested -------------------------------
    def clip_condition(self, pixels: Tensor) -> Tensor:
        """The RecA condition for CLIP: target pixels resized bilinearly to [B, 3, S, S].

        They stay in [-1, 1] as published, unless the config sets `clip_condition_normalise`.
        """
        side = self._clip_side
        scaled = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        if not self.config.clip_condition_normalise:
            return scaled
        mean, std = (scaled.new_tensor(values).view(3, 1, 1) for values in (clip.MEAN, clip.STD))
        return ((scaled + 1) / 2 - mean) / std

    def vq_condition(self, pixels: Tensor) -> Tensor:
        """The RecA condition [B, 3, h, w] for VQ: the target, or at half or a quarter of its side, or blurred."""
        side = self.config.resolution
        match self.config.vq_condition:
            case "full":
                return pixels
            case "half":
                return _bilinear(pixels, side // 2)
            case "quarter":
                return _bilinear(pixels, side // 4)
            case "blur8":
                return _bilinear(_bilinear(pixels, side // 8), side)

    def clip_crops(self, images: Sequence[Image]) -> list[Tensor]:
        """Images as CLIP itself prepares them, for reading; each [3, S, S]."""
        return clip.crops(images, self._clip_side)

    def vq_crops(self, images: Sequence[Image]) -> Tensor:
        """The VQ variant's preprocessing for understanding, [B, 3, R, R].

        Short side and centre crop at 512, then R. Models smaller than the released ones crop at
        their own resolution.
        """
        side = self.config.resolution
        crop = _READ_SIDE if side >= 256 else side
        pixels = self._stack(
            prepare_each(
                lambda image: pictures.to_tensor(pictures.short_side_crop(image, crop)), images
            )
        )
        return pixels if crop == side else _bilinear(pixels, side)

    # ---- codes to images -------------------------------------------------------------------------
    @torch.no_grad()
    def decode(self, codes: Tensor) -> list[Image]:
        """Decode codes [B, N] to images."""
        pixels = self.magvit.detokenise(moved(codes.long(), self._device))
        return pictures.to_images(pixels)

    # ---- identity --------------------------------------------------------------------------------
    def fingerprint(self, use: Use) -> str:
        """Hash of the weights and options that `encode(..., use)` depends on; cached until a weight changes."""
        reads_clip = (
            use == "read" and self.clip is not None
        )  # in the CLIP variant only CLIP is used to read
        state = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith("clip.") or not reads_clip
        }
        names = ["resolution", "understanding", "clip_vision", "vq"]
        if use == "draw":
            names += ["clip_condition_normalise", "vq_condition"]
        described = asdict(self.config)
        return self._fingerprints.of(
            state, {"use": use} | {name: described[name] for name in names}
        )

    @property
    def _clip_side(self) -> int:
        return self.config.tower.image_size

    @property
    def _device(self) -> torch.device:
        return self.magvit.quantize.embedding.device

    def _stack(self, tensors: Iterable[Tensor]) -> Tensor:
        """Stack rows [...] into one tensor [B, ...] on the encoder's device."""
        return moved(torch.stack(list(tensors)), self._device)


def _bilinear(pixels: Tensor, side: int) -> Tensor:
    """Resize pixels [B, 3, H, W] to another side."""
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
