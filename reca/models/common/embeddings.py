"""Sines and cosines as inputs: of times, and of places in a square. Letters: R times, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_code(t: Tensor, width: int = 256) -> Tensor:
    """Times [R] as [R, width]: cosines first, then sines, of t * 10000^(-k / (width / 2))."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_table(side: int, width: int) -> Tensor:
    """Float32 [side * side, width] on the CPU: sines and cosines of the column, then of the row, in raster order."""
    with torch.device("cpu"):
        steps = torch.arange(width // 4, dtype=torch.float64) / (width / 4)
        angles = torch.outer(torch.arange(side, dtype=torch.float64), 1 / 10000**steps)
        code = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
        return torch.cat([code.repeat(side, 1), code.repeat_interleave(side, 0)], dim=1).float()
