"""The benchmark cases: implementations to compare, and the minimum work of each case."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import reca_kernels
import torch
from reca_kernels import Layout
from torch import Tensor
from torch.nn import functional as F

# peak dense bf16 operations and bytes per second, from the vendors' data sheets
GPUS = {"A100": (312e12, 2.0e12), "H100": (989e12, 3.35e12), "B200": (2250e12, 8.0e12)}

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One operation at one size; `make` returns its leaves and, by implementation, the loss or output."""

    operation: str
    name: str
    make: Callable[[torch.device, torch.dtype], tuple[list[Tensor], dict[str, Step]]]
    flops: float  # forward and backward, without recomputation
    elements: float  # inputs, outputs and gradients, read or written once

    def bounds(self, size: int = 2) -> dict[str, float]:
        """Minimum milliseconds per GPU, by operations or by bytes, at `size` bytes per element."""
        return {
            name: max(self.flops / peak, self.elements * size / speed) * 1e3
            for name, (peak, speed) in GPUS.items()
        }

    def bound_by(self) -> str:
        """The bound, operations or bytes, that applies on an H100."""
        peak, speed = GPUS["H100"]
        return "operations" if self.flops / peak > self.elements * 2 / speed else "bytes"


def _leaf(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return (made / shape[-1] ** 0.5).to(device, dtype).requires_grad_()


# ---- linear cross-entropy ------------------------------------------------------------------------
def cross_entropy(name: str, rows: int, width: int, vocabulary: int) -> Case:
    """Forward, both gradients: 6 N D V operations."""
    return Case(
        "linear_cross_entropy",
        f"{name} N={rows} D={width} V={vocabulary}",
        partial(_cross_entropy, rows, width, vocabulary),
        6.0 * rows * width * vocabulary,
        2.0 * (rows * width + vocabulary * width),
    )


def _cross_entropy(
    rows: int, width: int, vocabulary: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Step]]:
    hidden, weight = _leaf(device, dtype, rows, width), _leaf(device, dtype, vocabulary, width)
    targets = (torch.arange(rows) * 7919 % vocabulary).to(device)
    ours = partial(reca_kernels.linear_cross_entropy, hidden, weight, targets)

    def eager() -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), targets)

    steps: dict[str, Step] = {
        "torch eager": eager,
        "reca torch": partial(ours, implementation="torch"),
    }
    if hasattr(F, "linear_cross_entropy"):
        steps["torch F.linear_cross_entropy"] = partial(
            F.linear_cross_entropy, hidden, weight, targets
        )
    if device.type == "cuda":
        steps["torch.compile"] = torch.compile(eager, dynamic=False)
        steps["reca triton"] = partial(ours, implementation="triton")
        steps |= _other_kernels(hidden, weight, targets)
    return [hidden, weight], steps


def _other_kernels(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Step]:
    """Liger and cut-cross-entropy, if installed."""
    found: dict[str, Step] = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda: liger(weight, hidden, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        found["cut-cross-entropy"] = lambda: cut(hidden, weight, targets)
    return found


# ---- flow matching -------------------------------------------------------------------------------
def flow(name: str, rows: int, width: int, channels: int) -> Case:
    """Velocity head and squared error, both gradients."""
    return Case(
        "flow_matching_loss",
        f"{name} N={rows} D={width} C={channels}",
        partial(_flow, rows, width, channels),
        6.0 * rows * width * channels,
        3.0 * rows * width + 2.0 * channels * width + 4.0 * rows * channels,
    )


def _flow(
    rows: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Step]]:
    leaves = [_leaf(device, dtype, *s) for s in ((rows, width), (channels, width), (channels,))]
    clean, noise = torch.randn(2, rows, channels, device=device).unbind(0)
    ours = partial(reca_kernels.flow_matching_loss, *leaves, clean, noise)

    def eager() -> Tensor:
        return F.mse_loss(F.linear(*leaves).float(), noise - clean)

    steps: dict[str, Step] = {
        "torch eager": eager,
        "reca torch": partial(ours, implementation="torch"),
    }
    if device.type == "cuda":
        steps["torch.compile"] = torch.compile(eager, dynamic=False)
        steps["reca triton"] = partial(ours, implementation="triton")
    return leaves, steps


# ---- attention -----------------------------------------------------------------------------------
def attention(
    name: str, samples: list[list[tuple[str, int]]], heads: int, keys: int, width: int = 64
) -> Case:
    """Forward (2 products) and backward (5), over the visible pairs."""
    layout = Layout.packed(samples)
    pairs = sum(int(Layout.packed([sample]).dense().sum()) for sample in samples)
    return Case(
        "block_attention",
        f"{name} T={layout.tokens} H={heads} K={keys}" + (f" E={width}" if width != 64 else ""),
        partial(_attention, samples, heads, keys, width),
        2.0 * 7 * pairs * heads * width,
        4.0 * layout.tokens * (heads + keys) * width,
    )


def _attention(
    samples: list[list[tuple[str, int]]],
    heads: int,
    keys: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Tensor], dict[str, Step]]:
    layout = Layout.packed(samples, device)
    leaves = [_leaf(device, dtype, layout.tokens, n, width) for n in (heads, keys, keys)]
    ours = partial(reca_kernels.block_attention, *leaves, layout)
    alike = all(sample == samples[0] for sample in samples)
    rows = len(samples) if alike else 1
    length = layout.tokens // rows
    seen = layout.dense(slice(0, length), slice(0, length))
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))

    def batched() -> list[Tensor]:
        return [t.unflatten(0, (rows, length)).transpose(1, 2) for t in leaves]

    def sdpa() -> Tensor:
        q, k, v = batched()
        share = heads // keys
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    steps: dict[str, Step] = {
        "torch SDPA, dense mask": sdpa,
        "reca torch": partial(ours, implementation="torch"),
    }
    steps["torch flex_attention"] = _flex(layout, length, batched, device, heads != keys)
    if device.type == "cuda":
        steps["reca triton"] = partial(ours, implementation="triton")
    return leaves, steps


def _flex(
    layout: Layout, length: int, batched: Callable[[], list[Tensor]], device: torch.device,
    grouped: bool,
) -> Step:  # fmt: skip
    """flex_attention with a block mask and grouped keys; the rule is read from one number per token, as ours is."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    kind, tag = layout.kind[:length], layout.tag[:length]

    def visible(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        passed = ((kind[k] >= 2) & (kind[k] <= 4)) | ((kind[k] == 1) & (kind[q] == 1))
        return (passed & (k <= q)) | ((kind[k] >= 3) & (tag[k] == tag[q])) | (kind[k] == 4)

    blocks = create_block_mask(visible, None, None, length, length, device=device.type)
    flex = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def step() -> Tensor:
        inputs = batched() if torch.is_grad_enabled() else [t.detach() for t in batched()]
        return flex(*inputs, block_mask=blocks, enable_gqa=grouped)

    return step


SHOWO_DRAWS = [("pad", 80), ("causal", 49), ("full", 258)]
SHOWO_RECA = [("causal", 2), ("open", 576), ("causal", 61), ("hidden", 64), ("causal", 1),
              ("full", 1024), ("causal", 1)]  # fmt: skip
BAGEL = [("full", 258), ("causal", 14), ("noise", 258)]
LAPTOP = [("pad", 10), ("causal", 20), ("full", 66)]


def cases(device: str) -> list[Case]:
    """The models' sizes on a GPU; sizes that run in seconds on a CPU."""
    if device == "cuda":
        return [
            cross_entropy("Show-o codes", 8192, 2048, 8192),
            cross_entropy("Show-o all", 8192, 2048, 58498),
            cross_entropy("Janus-Pro-7B", 4608, 4096, 16384),
            cross_entropy("Qwen", 4096, 1536, 151936),
            flow("BAGEL", 30000, 3584, 64),
            flow("Harmon", 16384, 1280, 16),
            attention("Show-o RecA", [SHOWO_RECA] * 4, 32, 32),
            attention("Show-o text to image", [[("causal", 128), ("full", 1025)]] * 8, 32, 32),
            attention("BAGEL 256 px", [BAGEL] * 57, 28, 4, 128),
            attention("BAGEL 1024 px", [[*BAGEL[:2], ("noise", 4098)]] * 7, 28, 4, 128),
        ]
    return [
        cross_entropy("large vocabulary", 4096, 1024, 32768),
        cross_entropy("Show-o codes", 512, 2048, 8192),
        cross_entropy("laptop", 1024, 128, 1500),
        flow("BAGEL, fewer rows", 4096, 3584, 64),
        attention("laptop", [LAPTOP] * 16, 4, 4),
        attention("Show-o draws", [SHOWO_DRAWS] * 4, 4, 4),
        attention("Show-o RecA", [SHOWO_RECA], 4, 4),
        attention("BAGEL 256 px", [BAGEL] * 4, 7, 1),
    ]
