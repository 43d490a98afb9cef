"""Pinned tile sizes and launch options of the kernels: the order of every sum depends on them.

Chosen by compiling ahead of time for sm_80 and sm_90 (perf/kernels/static.py): the largest tiles
without spills. They have not been timed on a GPU yet. The interpreter uses small tiles, so that small
inputs span several.
"""

from __future__ import annotations

import torch

from reca_kernels.runtime import interpreted

WIDEST_HEAD = 128  # wider heads have no tuned tiles
MOST_CHANNELS = 128  # channels of a flow-matching row: one tile covers all of them

# (queries, keys, warps, stages) of a tile; 16-bit heads up to 64, up to 128, then fp32 likewise
_ATTENTION = {
    "forward": ((128, 64, 4, 3), (128, 64, 8, 3), (32, 32, 4, 1), (16, 16, 4, 2)),
    "query": ((64, 64, 4, 2), (64, 64, 8, 2), (32, 32, 4, 1), (16, 32, 4, 1)),
    "key": ((64, 32, 4, 2), (32, 64, 8, 2), (32, 32, 8, 1), (16, 16, 8, 2)),
}


def attention(kernel: str, dtype: torch.dtype, width: int) -> dict[str, int]:
    """Launch options of attention's `kernel` (forward, or gradient of query or key) for this head width."""
    wide = _padded(width)
    if interpreted():
        return {"BE": wide, "BQ": 16, "BK": 32 if kernel == "forward" else 16}
    bq, bk, warps, stages = _ATTENTION[kernel][2 * (dtype == torch.float32) + (wide > 64)]
    return {"BE": wide, "BQ": bq, "BK": bk, "num_warps": warps, "num_stages": stages}


def cross_entropy(dtype: torch.dtype) -> dict[str, int]:
    """Launch options for tiles of logits, rows by columns."""
    if interpreted():
        return {"BM": 32, "BV": 32, "BD": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 3}
    return {"BM": 128, "BV": 128, "BD": 64, "num_warps": 8, "num_stages": 3}


def flow(dtype: torch.dtype, channels: int) -> dict[str, int]:
    """Launch options for tiles of residuals, rows by channels."""
    wide = _padded(channels)
    if interpreted():
        return {"BM": 16, "BC": wide, "BD": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BC": wide, "BD": 32, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BC": wide, "BD": 64, "num_warps": 8, "num_stages": 3}


def product(dtype: torch.dtype) -> dict[str, int]:
    """Launch options of the backward passes' matrix product."""
    if interpreted():
        return {"BM": 32, "BN": 32, "BK": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}


def precision() -> str:
    """The precision of fp32 products, as torch is configured (TF32 only if allowed)."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _padded(size: int) -> int:
    """The smallest power of two not below `size`, at least 16, which `tl.dot` requires."""
    return max(16, 1 << (size - 1).bit_length())
