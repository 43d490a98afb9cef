"""Pinned tile sizes and launch options of the kernels: the order of every sum depends on them.

Those of attention on Hopper and of flow matching were the fastest of the ones timed on an H100
(docs/results/h100/tiles.csv). The others were chosen by compiling ahead of time for sm_80 and sm_90
(perf/kernels/static.py): the largest tiles without spills. The interpreter uses small tiles, so that small inputs span
several.
"""

from __future__ import annotations

import torch

from reca_kernels.runtime import MIN_CAPABILITY, interpreted

WIDEST_HEAD = 128  # wider heads have no tuned tiles
MOST_CHANNELS = 128  # channels of a flow-matching row: one tile covers all of them

# (queries, keys, warps, stages) of a tile; 16-bit heads up to 64, up to 128, then fp32 likewise
_ATTENTION = {
    "forward": ((128, 64, 8, 3), (128, 64, 8, 3), (32, 32, 4, 1), (16, 16, 4, 2)),
    "query": ((64, 32, 4, 3), (64, 64, 8, 2), (32, 32, 4, 2), (16, 32, 4, 2)),
    "key": ((64, 32, 4, 2), (32, 64, 8, 2), (32, 32, 8, 1), (16, 16, 8, 2)),
}
# 16-bit heads of up to 64, of up to 128, and of up to 128 in long samples. Small tiles let two programs share a
# multiprocessor, and waste less of short samples.
_HOPPER = {
    "forward": ((64, 128, 4, 3), (64, 32, 4, 3), (128, 64, 8, 3)),
    "query": ((64, 64, 4, 3), (64, 32, 4, 3), (128, 64, 8, 3)),
    "key": ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
}
_LATER = {  # Blackwell, whose products the compiler makes otherwise; not timed
    "forward": ((128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
    "query": ((64, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
    "key": ((64, 64, 4, 2), (32, 128, 8, 2), (32, 128, 8, 2)),
}


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device; the least supported one elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else MIN_CAPABILITY


def attention(
    kernel: str, dtype: torch.dtype, width: int, device: torch.device, long: bool = False
) -> dict[str, int]:
    """Launch options of attention's `kernel` (forward, or gradient of query or key) for this head width.

    `long`: samples have thousands of tokens. TMA: tiles are read by the hardware's copies, if the tensors suit them.
    """
    wide = _padded(width)
    if interpreted():
        return {"TMA": 1, "BE": wide, "BQ": 16, "BK": 32 if kernel == "forward" else 16}
    case = 2 * (dtype == torch.float32) + (wide > 64)
    tile, tma = _ATTENTION[kernel][case], 0
    if case < 2 and capability(device) >= (9, 0):
        # heads that fill no tile are read by pointers, which take registers
        tiles = _HOPPER if capability(device)[0] == 9 and width == wide else _LATER
        tile = tiles[kernel][2 if long and case else case]
        tma = int(torch.version.hip is None)
    bq, bk, warps, stages = tile
    return {"TMA": tma, "BE": wide, "BQ": bq, "BK": bk, "num_warps": warps, "num_stages": stages}


def cross_entropy(dtype: torch.dtype) -> dict[str, int]:
    """Launch options for tiles of logits, rows by columns."""
    if interpreted():
        return {"BM": 32, "BV": 32, "BD": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 3}
    return {"BM": 128, "BV": 128, "BD": 64, "num_warps": 8, "num_stages": 3}


def softmax(columns: int) -> dict[str, int]:
    """Launch options of the kernel over rows of logits that are in memory."""
    if interpreted():
        return {"BV": 512}
    return {"BV": min(4096, max(1024, 1 << (columns - 1).bit_length())), "num_warps": 8}


def flow(dtype: torch.dtype, channels: int) -> dict[str, int]:
    """Launch options for tiles of residuals, rows by channels."""
    wide = _padded(channels)
    if interpreted():
        return {"BM": 16, "BC": wide, "BD": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BC": wide, "BD": 32, "num_warps": 4, "num_stages": 3}
    return {"BM": 64, "BC": wide, "BD": 128, "num_warps": 4, "num_stages": 3}


def product(dtype: torch.dtype) -> dict[str, int]:
    """Launch options of the backward passes' matrix product."""
    if interpreted():
        return {"BM": 32, "BN": 32, "BK": 32}
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}


def scale() -> dict[str, int]:
    """Launch options of the kernel that multiplies in place."""
    return {"BLOCK": 512} if interpreted() else {"BLOCK": 4096, "num_warps": 8}


def precision() -> str:
    """The precision of fp32 products, `tf32` or `ieee`, as torch is configured by its new or its old API.

    The new one is read where it exists: after `fp32_precision = ...` the old flags raise when read.
    """
    matmul = torch.backends.cuda.matmul
    chosen = getattr(matmul, "fp32_precision", None)
    if chosen is None:
        return "tf32" if matmul.allow_tf32 else "ieee"
    return "tf32" if chosen == "tf32" else "ieee"


def _padded(size: int) -> int:
    """The smallest power of two not below `size`, at least 16, which `tl.dot` requires."""
    return max(16, 1 << (size - 1).bit_length())
