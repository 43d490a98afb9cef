"""Flow-matching loss: fused velocity head and squared error; velocity and target are never stored.

Contents: the torch implementation (chunks of rows), the Triton kernels, their autograd
wrapper. Letters: N rows, M rows that carry a loss, D width, C channels of a row.
Source: docs/reference/bagel.md 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reca_kernels import tuning
from reca_kernels.inputs import dense_rows
from reca_kernels.language import ceil_div, jit, tl
from reca_kernels.product import product

_CHUNK_ROWS = 1024


# ---- torch: chunks of rows; the gradient of a scalar loss is computed in forward -----------------
class Torch(torch.autograd.Function):
    """Plain torch, with one chunk of velocities in memory at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        clean: Tensor,
        noise: Tensor,
        rows: Tensor | None,
        reduction: str,
    ) -> Tensor:
        """The scalar loss, or losses [M], of hidden [N, D] against `noise - clean` [N, C]."""
        ctx.save_for_backward(hidden, weight, bias, clean, noise, rows)
        count = len(hidden) if rows is None else len(rows)
        ctx.scale = 1 / max(count, 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        needs = ctx.needs_input_grad[:3] if ctx.scalar else (False,) * 3
        losses, ctx.gradients = _chunked(
            hidden, weight, bias, clean, noise, rows, None, needs, ctx.scale
        )
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden [N, D], weight [C, D] and bias [C].

        For a scalar loss forward has computed them already; otherwise they are computed here.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if not ctx.scalar or gradients is None:
            by_row = None if ctx.scalar else incoming
            needs = ctx.needs_input_grad[:3]
            rest: Any = (by_row, needs, ctx.scale)
            _, gradients = _chunked(*ctx.saved_tensors, *rest)
        if ctx.scalar:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(incoming)
        return (*gradients, None, None, None, None)


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    rows: Tensor | None,
    by_row: Tensor | None,
    needs: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Losses [M] and, if requested by `needs`, gradients of hidden, weight and bias times `scale`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    channels, count = weight.shape[0], len(hidden) if rows is None else len(rows)
    losses = torch.empty(count, dtype=wide, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(channels, dtype=wide, device=weight.device) if needs[2] else None
    for first in range(0, count, _CHUNK_ROWS):
        part = slice(first, min(first + _CHUNK_ROWS, count))
        chosen_rows = part if rows is None else rows[part]
        x = hidden[chosen_rows]
        residual = torch.nn.functional.linear(x, weight, bias).to(wide)
        residual = residual - noise[chosen_rows].to(wide) + clean[chosen_rows].to(wide)
        losses[part] = residual.square().mean(1)
        residual.mul_(2 / channels)
        if by_row is not None:
            residual.mul_(by_row[part].unsqueeze(1))
        if d_bias is not None:
            d_bias += residual.sum(0)
        residual = residual.to(hidden.dtype)
        if d_hidden is not None:
            d_hidden[chosen_rows] = (residual @ weight).mul_(scale)
        if d_weight is not None:
            d_weight += residual.T @ x
    return losses, (
        d_hidden,
        None if d_weight is None else d_weight.mul_(scale).to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(scale).to(bias.dtype),
    )


# ---- Triton: the velocity stays in registers; backward keeps one chunk of residuals --------------
_CHUNK_TRITON = 8192  # rows per chunk of residuals [rows, C], stored for the product with hidden
_SPLITS = 8  # parts of that product's sum over rows: a few channels alone would not fill a GPU


@jit
def residual_tile(
    X, W, B, CLEAN, NOISE, source, inside, D, C, x_row, w_row, clean_row, noise_row,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Velocity - (noise - clean) [BM, BC] for rows `source`; 0 outside the rows and channels."""
    channel = tl.arange(0, BC)
    known = channel < C
    far = source.to(tl.int64)[:, None]
    total = tl.zeros((BM, BC), tl.float32)
    for first in range(0, D, BD):
        inner = first + tl.arange(0, BD)
        x = tl.load(
            X + far * x_row + inner[None, :], mask=inside[:, None] & (inner < D)[None, :], other=0.0
        )
        w = tl.load(
            W + channel[None, :] * w_row + inner[:, None],
            mask=known[None, :] & (inner < D)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(x, w, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(B + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    valid = inside[:, None] & known[None, :]
    noise = tl.load(NOISE + far * noise_row + channel[None, :], mask=valid, other=0.0)
    clean = tl.load(CLEAN + far * clean_row + channel[None, :], mask=valid, other=0.0)
    return tl.where(valid, total - noise.to(tl.float32) + clean.to(tl.float32), 0.0)


@jit
def error_kernel(
    X, W, B, CLEAN, NOISE, ROWS, LOSS, M, D, C, x_row, w_row, clean_row, noise_row,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """LOSS[M], the mean squared residual of each row."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < M
    source = tl.load(ROWS + row, mask=inside, other=0) if HAS_ROWS else row
    residual = residual_tile(
        X, W, B, CLEAN, NOISE, source, inside, D, C, x_row, w_row, clean_row, noise_row,
        HAS_BIAS, PRECISION, BM, BC, BD,
    )  # fmt: skip
    tl.store(LOSS + row, tl.sum(residual * residual, 1) / C, mask=inside)


@jit
def hidden_gradient_kernel(
    X, W, B, CLEAN, NOISE, ROWS, WEIGH, SCALE, G, DX, M, D, C, x_row, w_row, clean_row, noise_row,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGH: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """G[M, C] = weighted residuals * 2 / C, and DX[ROWS] = SCALE * G @ W."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < M
    source = tl.load(ROWS + row, mask=inside, other=0) if HAS_ROWS else row
    channel = tl.arange(0, BC)
    known = channel < C
    g = residual_tile(
        X, W, B, CLEAN, NOISE, source, inside, D, C, x_row, w_row, clean_row, noise_row,
        HAS_BIAS, PRECISION, BM, BC, BD,
    ) * (2.0 / C)  # fmt: skip
    if HAS_WEIGH:
        g *= tl.load(WEIGH + row, mask=inside, other=0.0)[:, None]
    valid = inside[:, None] & known[None, :]
    tl.store(G + row[:, None] * C + channel[None, :], g.to(G.dtype.element_ty), mask=valid)
    scale = tl.load(SCALE)
    g = g.to(G.dtype.element_ty)
    for first in range(0, D, BD):
        inner = first + tl.arange(0, BD)
        w = tl.load(
            W + channel[:, None] * w_row + inner[None, :],
            mask=known[:, None] & (inner < D)[None, :], other=0.0,
        )  # fmt: skip
        d = tl.dot(g, w, input_precision=PRECISION) * scale
        place = DX + source.to(tl.int64)[:, None] * D + inner[None, :]
        tl.store(place, d.to(DX.dtype.element_ty), mask=inside[:, None] & (inner < D)[None, :])


class Triton(torch.autograd.Function):
    """Saves the inputs only; backward recomputes the residuals."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        clean: Tensor,
        noise: Tensor,
        rows: Tensor | None,
        reduction: str,
    ) -> Tensor:
        """The scalar loss, or losses [M], of hidden [N, D] against `noise - clean` [N, C]."""
        hidden, weight, clean, noise = (dense_rows(t) for t in (hidden, weight, clean, noise))
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(hidden, weight, bias, clean, noise, rows)
        count, block = (
            len(hidden) if rows is None else len(rows),
            tuning.flow(hidden.dtype, len(weight)),
        )
        ctx.scale = 1 / max(count, 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        losses = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        if count:
            error_kernel[(ceil_div(count, block["BM"]),)](
                hidden, weight, bias, clean, noise, rows, losses, count, hidden.shape[1],
                len(weight), hidden.stride(0), weight.stride(0), clean.stride(0), noise.stride(0),
                HAS_ROWS=rows is not None, HAS_BIAS=bias is not None, PRECISION=tuning.precision(),
                **block,
            )  # fmt: skip
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """For each chunk, residuals [rows, C], the gradient of hidden, and their product with hidden."""
        scale = torch.full((1,), ctx.scale, dtype=torch.float32, device=incoming.device)
        if ctx.scalar:
            scale = scale * incoming.float()
        weigh = None if ctx.scalar else incoming.float().contiguous()
        rest: Any = (weigh, scale)
        return (*_gradients(*ctx.saved_tensors, *rest), None, None, None, None)


def _gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    rows: Tensor | None,
    weigh: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden [N, D], weight [C, D] and bias [C] (None without a bias)."""
    (channels, width), block = weight.shape, tuning.flow(hidden.dtype, len(weight))
    d_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    parts = hidden.new_empty(_SPLITS, channels, width, dtype=torch.float32)
    d_weight = hidden.new_zeros(channels, width, dtype=torch.float32)
    d_bias = hidden.new_zeros(channels, dtype=torch.float32)
    every = torch.arange(len(hidden), device=hidden.device) if rows is None else rows
    for first in range(0, len(every), _CHUNK_TRITON):
        chunk = every[first : first + _CHUNK_TRITON]
        g = hidden.new_empty(len(chunk), channels)
        hidden_gradient_kernel[(ceil_div(len(chunk), block["BM"]),)](
            hidden, weight, bias, clean, noise, chunk,
            None if weigh is None else weigh[first:], scale, g, d_hidden, len(chunk), width,
            channels, hidden.stride(0), weight.stride(0), clean.stride(0), noise.stride(0),
            HAS_ROWS=True, HAS_BIAS=bias is not None, HAS_WEIGH=weigh is not None,
            PRECISION=tuning.precision(), **block,
        )  # fmt: skip
        product(g.T, hidden, chunk, scale, parts)
        d_weight += parts.sum(0)
        d_bias += g.sum(0, dtype=torch.float32) * scale
    return d_hidden, d_weight.to(weight.dtype), None if bias is None else d_bias.to(bias.dtype)
