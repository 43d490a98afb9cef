"""The MAGVIT-v2 image tokenizer: convolutional encoder and decoder around a look-up-free quantiser.

Names of parameters and buffers are the released ones. Source: docs/reference/showo.md 1.3.
Shapes: B batch, H W pixels, h w latent cells (H / down_sampling), C latent channels (code bits).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 32
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class MagvitConfig:
    """Widths and depths by level (0 is the finest); the defaults are the released tokenizer."""

    ch: int = 128
    enc_ch_mult: tuple[float, ...] = (1, 2, 2, 4, 4)
    enc_num_res_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    dec_ch_mult: tuple[float, ...] = (1, 1, 2, 2, 4)
    dec_num_res_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    z_channels: int = 13
    in_ch: int = 3
    out_ch: int = 3

    def __post_init__(self) -> None:
        lists = (
            self.enc_ch_mult,
            self.enc_num_res_blocks,
            self.dec_ch_mult,
            self.dec_num_res_blocks,
        )
        if len({len(values) for values in lists}) != 1 or not self.enc_ch_mult:
            raise ValueError(
                "vq: enc_ch_mult, enc_num_res_blocks, dec_ch_mult and dec_num_res_blocks need one "
                f"entry per level each, but have {[len(values) for values in lists]}"
            )
        for mult in (*self.enc_ch_mult, *self.dec_ch_mult):
            if self.ch * mult != int(self.ch * mult) or self.ch * mult < 1:
                raise ValueError(f"vq: ch {self.ch} x mult {mult} is no number of channels")

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's levels."""
        return tuple(int(self.ch * mult) for mult in self.enc_ch_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's levels."""
        return tuple(int(self.ch * mult) for mult in self.dec_ch_mult)

    @property
    def down_sampling(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.enc_ch_mult) - 1)

    @property
    def codebook_size(self) -> int:
        """K: number of codes, one per sign pattern of the latent channels."""
        return 2**self.z_channels


class Magvit(nn.Module):
    """Images in [-1, 1] to codes 0..K-1 and back; deterministic, and usually frozen."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LookupFreeQuantiser(config.z_channels)

    def encode(self, images: Tensor) -> Tensor:
        """Latents before quantisation: [B, 3, H, W] in [-1, 1] -> z [B, C, h, w]."""
        return self.encoder(images)

    def codes(self, z: Tensor) -> Tensor:
        """Codes of latents, row-major over the cells: [B, C, h, w] -> int64 [B, h*w]."""
        return self.quantize.codes(z)

    def quantise(self, z: Tensor) -> Tensor:
        """+1 where z > 0, else -1, as z [B, 13, h, w]; the gradient passes straight through."""
        return self.quantize(z)

    def from_codes(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Quantised latents of codes: [B, h*w] -> [B, C, h, w]; `shape` (h, w), else a square."""
        return self.quantize.from_codes(codes, shape)

    def decode(self, zq: Tensor) -> Tensor:
        """Images of quantised latents: [B, C, h, w] -> [B, 3, H, W], about [-1, 1], not clamped."""
        return self.decoder(zq)

    def tokenise(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> codes int64 [B, h*w]."""
        return self.codes(self.encode(images))

    def detokenise(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Codes [B, h*w] -> images [B, 3, H, W] (see `decode`)."""
        return self.decode(self.from_codes(codes, shape))


class LookupFreeQuantiser(nn.Module):
    """One bit per channel: its sign. Channel 0 is the code's most significant bit; z = 0 gives 0.

    The two buffers are constants that released files carry; they are computed, so a file may lack
    them.
    """

    embedding: Tensor  # [K, C], +-1
    power_vals: Tensor  # [C], value of each bit

    def __init__(self, channels: int) -> None:
        super().__init__()
        power_vals = 2 ** torch.arange(channels - 1, -1, -1)
        every_code = torch.arange(2**channels)
        bits = every_code.unsqueeze(1).bitwise_and(power_vals) != 0
        self.register_buffer("embedding", bits.float() * 2 - 1)
        self.register_buffer("power_vals", power_vals)

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> +-1 in the same shape."""
        return signs(z) + (z - z.detach())  # exactly +-1, with the gradient of z

    def codes(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> int64 [B, h*w]."""
        weights = self.power_vals.view(1, -1, 1, 1)
        return ((z > 0) * weights).sum(dim=1).flatten(1)

    def from_codes(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """[B, h*w] -> +-1 [B, C, h, w]; ValueError when `shape` does not hold the codes."""
        batch, cells = codes.shape
        height, width = shape or (math.isqrt(cells), math.isqrt(cells))
        if height * width != cells:
            raise ValueError(
                f"{cells} codes do not fill a {height} x {width} grid; give shape=(h, w)"
            )
        return self.embedding[codes].transpose(1, 2).reshape(batch, -1, height, width)


def signs(z: Tensor) -> Tensor:
    """+1 where z > 0, else -1, in the dtype of z [B, 13, h, w]."""
    return torch.where(z > 0, 1.0, -1.0).to(z.dtype)


def _norm(width: int) -> nn.GroupNorm:
    """32 groups at the released widths; others take the largest divisor shared with 32."""
    return nn.GroupNorm(math.gcd(_GROUPS, width), width, eps=_NORM_EPS)


def _conv3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=3, padding=1)


def _conv1(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=1)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside an identity (1x1 convolution where widths differ)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = _conv3(before, after)
        self.norm2 = _norm(after)
        self.conv2 = _conv3(after, after)
        if before != after:
            self.nin_shortcut = _conv1(before, after)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, h, w]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the cells, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = _conv1(width, width)
        self.k = _conv1(width, width)
        self.v = _conv1(width, width)
        self.proj_out = _conv1(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        normed = self.norm(x)
        q, k, v = (  # each [B, h*w, width]
            project(normed).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)  # scale 1/sqrt(width)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """The coarsest resolution: residual block, attention, residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve the resolution: pad right and bottom by one, 3x3 convolution with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, width, h/2, w/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, width, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, then a step to the next resolution unless it is the last."""

    def __init__(self, before: int, after: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(before if b == 0 else after, after) for b in range(blocks)
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, h', w']."""
        for block in self.block:
            x = block(x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nn.Module):
    """Levels from fine to coarse, a down-sampling after each but the last, then the code bits."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.conv_in = _conv3(config.in_ch, config.ch)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip((config.ch, *widths), widths, strict=False)):
            stage = Level(before, after, config.enc_num_res_blocks[level])
            if level < len(widths) - 1:
                stage.downsample = Downsample(after)
            self.down.append(stage)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv3(widths[-1], config.z_channels)
        self.quant_conv = _conv1(config.z_channels, config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> latents [B, C, h, w]."""
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        x = F.silu(self.norm_out(self.mid(x)))
        return self.quant_conv(self.conv_out(x))


class Decoder(nn.Module):
    """Levels from coarse to fine, an up-sampling after each but the finest; `up.{l}` is level l."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        coarsest = len(widths) - 1
        self.post_quant_conv = _conv1(config.z_channels, config.z_channels)
        self.conv_in = _conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[min(level + 1, coarsest)]
            stage = Level(before, width, config.dec_num_res_blocks[level])
            if level > 0:
                stage.upsample = Upsample(width)
            self.up.append(stage)
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], config.out_ch)

    def forward(self, z: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W]."""
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))
