"""The KL autoencoder of Stable Diffusion, as BAGEL (FLUX's) and Harmon (MAR's) use it.

Parameters have the names, shapes and initial values of diffusers' `AutoencoderKL`, and results are equal up to
rounding (tests/models/test_autoencoder_kl.py). It is written out here because importing diffusers' class takes two
seconds: it loads diffusers' adapters and other models. Letters: B batch, C channels, Z latent channels, (H, W) pixels,
(h, w) latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-6


class _Residual(nn.Module):
    """Two normalised 3 x 3 convolutions beside an identity, or beside a 1 x 1 convolution where the width changes."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, _EPSILON)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, after, _EPSILON)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = None if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden


class _Attention(nn.Module):
    """Self-attention of all places of an image, with one head and a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, _EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h / 2, w / 2]."""
        hidden = self.group_norm(x.flatten(2)).transpose(1, 2)  # [B, hw, C]
        q, k, v = (project(hidden).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v))
        hidden = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return hidden.transpose(1, 2).reshape(x.shape) + x


class _Halve(nn.Module):
    """A convolution of stride 2, padded on the right and below only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 2h, 2w]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Double(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] through the residuals, attentions and the resize of this level."""
        if x.numel() * 2 > 2**31 or len(x) >= 64:  # limits of torch's channels-last kernel
            x = x.contiguous()
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention on request, then an optional change of size."""

    def __init__(
        self, widths: Sequence[int], groups: int, attention: bool = False, resize: str | None = None
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        self.resnets = nn.ModuleList()
        for before, after in pairwise(widths):
            self.resnets.append(_Residual(before, after, groups))
            if attention:
                self.attentions.append(_Attention(after, groups))
        if resize == "halve":
            self.downsamplers = nn.ModuleList([_Halve(widths[-1])])
        if resize == "double":
            self.upsamplers = nn.ModuleList([_Double(widths[-1])])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        for number, residual in enumerate(self.resnets):
            x = residual(x)
            if self.attentions:
                x = self.attentions[number](x)
        for resize in (*self._parts("downsamplers"), *self._parts("upsamplers")):
            x = resize(x)
        return x

    def _parts(self, name: str) -> nn.ModuleList:
        return getattr(self, name, nn.ModuleList())


class _Middle(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        first = _Residual(width, width, groups)
        self.attentions = nn.ModuleList([_Attention(width, groups)])
        self.resnets = nn.ModuleList([first, _Residual(width, width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Ends(nn.Module):
    """What encoder and decoder begin and end with: a convolution; normalisation, SiLU and a convolution."""

    conv_in: nn.Conv2d
    conv_norm_out: nn.GroupNorm
    conv_out: nn.Conv2d

    def _last(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Encoder(_Ends):
    """Pixels [B, 3, H, W] -> [B, 2 Z, h, w], halved between levels."""

    def __init__(
        self, widths: Sequence[int], resnets: int, latent: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks, before, last = nn.ModuleList(), widths[0], len(widths) - 1
        for level, width in enumerate(widths):
            sizes = [before, *[width] * resnets]
            resize = "halve" if level < last else None
            self.down_blocks.append(_Level(sizes, groups, attention and level == last, resize))
            before = width
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Means and log-variances [B, 2C, h, w] of pixels [B, 3, H, W], before any `quant_conv`."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self._last(self.mid_block(x))


class Decoder(_Ends):
    """Latents [B, Z, h, w] -> pixels [B, 3, H, W], doubled between levels; one residual block more than the encoder."""

    def __init__(self, widths: Sequence[int], resnets: int, latent: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid_block = _Middle(widths[-1], groups)
        self.up_blocks, before = nn.ModuleList(), widths[-1]
        for level, width in enumerate(reversed(widths)):
            sizes = [before, *[width] * (resnets + 1)]
            resize = "double" if level < len(widths) - 1 else None
            self.up_blocks.append(_Level(sizes, groups, resize=resize))
            before = width
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], _EPSILON)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of latents [B, C, h, w], after any `post_quant_conv`."""
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self._last(x)


class AutoencoderKL(nn.Module):
    """Images to a normal distribution of latents and back; scale and shift of latents are the family's to apply.

    `widths` are the channels of each level, `resnets` the residual blocks of an encoder level, `groups` those of group
    normalisation. `encoder_attention` adds attention at the encoder's last level, `quant_conv` a 1 x 1 convolution on
    each side of the latents.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        resnets: int,
        latent_channels: int,
        groups: int = 32,
        encoder_attention: bool = False,
        quant_conv: bool = True,
    ) -> None:
        super().__init__()
        self.levels = len(widths)
        self.encoder = Encoder(widths, resnets, latent_channels, groups, encoder_attention)
        self.decoder = Decoder(widths, resnets, latent_channels, groups)
        both = 2 * latent_channels
        self.quant_conv = nn.Conv2d(both, both, 1) if quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, 1) if quant_conv else None
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.encoder.conv_in.weight.dtype

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, [B, Z, h, w] each, of the latents of pixels [B, 3, H, W] in [-1, 1]."""
        encoded = self.encoder(pixels)
        encoded = encoded if self.quant_conv is None else self.quant_conv(encoded)
        mean, log_variance = encoded.chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of unscaled latents [B, Z, h, w], in [-1, 1] but for overshoot."""
        return self.decoder(
            latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        )
