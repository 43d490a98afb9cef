"""Flow-matching loss: fused velocity head and squared error; velocity and target are never stored.

Contents: the torch implementation (chunks of rows) and the Triton one, which keeps the residuals, C numbers per row,
for a backward pass of two library products. `operators/` gives both their gradients. Letters: N rows, M rows that
carry a loss, D width, C channels of a row.
Source: docs/reference/bagel.md 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_kernels import tuning
from reca_kernels.language import ceil_div, jit, launch, tl

_CHUNK_ROWS = 1024
_CHUNK_ROWS_GPU = 65536  # a chunk has few channels: small ones would be all launches


# ---- torch: chunks of rows, with losses and gradients computed together --------------------------
def chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    rows: Tensor | None,
    by_row: Tensor | None,
    needs: Sequence[bool],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Losses [M] and, if requested by `needs`, gradients of hidden, weight and bias times `scale`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    channels, count = weight.shape[0], len(hidden) if rows is None else len(rows)
    losses = torch.empty(count, dtype=wide, device=hidden.device)
    # where all rows are chosen, all are written below
    made = torch.empty_like if rows is None else torch.zeros_like
    d_hidden = made(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(channels, dtype=wide, device=weight.device) if needs[2] else None
    step = _CHUNK_ROWS_GPU if hidden.is_cuda else _CHUNK_ROWS
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
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
            if rows is None:
                torch.mm(residual, weight, out=d_hidden[part]).mul_(scale)
            else:
                d_hidden[chosen_rows] = (residual @ weight).mul_(scale)
        if d_weight is not None:
            d_weight += residual.T @ x
    return losses, (
        d_hidden,
        None if d_weight is None else d_weight.mul_(scale).to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(scale).to(bias.dtype),
    )


# ---- Triton: the velocity stays in registers, the residuals are kept -----------------------------
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
    X, W, B, CLEAN, NOISE, ROWS, LOSS, G, M, D, C, x_row, w_row, clean_row, noise_row,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """LOSS[M], the mean squared residual of each row, and its derivative G[ROWS, C] by the velocity."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < M
    source = tl.load(ROWS + row, mask=inside, other=0) if HAS_ROWS else row
    residual = residual_tile(
        X, W, B, CLEAN, NOISE, source, inside, D, C, x_row, w_row, clean_row, noise_row,
        HAS_BIAS, PRECISION, BM, BC, BD,
    )  # fmt: skip
    tl.store(LOSS + row, tl.sum(residual * residual, 1) / C, mask=inside)
    if KEEP:
        channel = tl.arange(0, BC)
        place = G + source.to(tl.int64)[:, None] * C + channel[None, :]
        g = residual * (2.0 / C)
        tl.store(place, g.to(G.dtype.element_ty), mask=inside[:, None] & (channel < C)[None, :])


def tiled(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    rows: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Losses [M] and, with `keep`, their derivatives [N, C] by the velocities: 0 in rows without a loss."""
    count, (channels, width) = len(hidden) if rows is None else len(rows), weight.shape
    losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
    make = torch.empty if rows is None else torch.zeros
    kept = make((len(hidden) if keep else 0, channels), dtype=hidden.dtype, device=hidden.device)
    if count:
        block = tuning.flow(hidden.dtype, channels)
        launch(
            error_kernel, (ceil_div(count, block["BM"]),), hidden, weight, bias, clean, noise, rows,
            losses, kept, count, width, channels, hidden.stride(0), weight.stride(0),
            clean.stride(0), noise.stride(0), HAS_ROWS=rows is not None, HAS_BIAS=bias is not None,
            KEEP=keep, PRECISION=tuning.precision(), **block,
        )  # fmt: skip
    return losses, kept


def products(
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    needs: Sequence[bool],
    scale: float,
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden [N, D], weight [C, D] and bias [C] times `scale`, from the derivatives [N, C].

    `scale` enters after the products: multiplied into 16-bit derivatives, 1 / rows could underflow.
    """
    d_hidden = d_weight = d_bias = None
    if needs[0]:
        d_hidden = hidden.new_empty(hidden.shape).addmm_(kept, weight, beta=0, alpha=scale)
    if needs[1]:
        # a row without a loss may hold anything: 0 times its nan would be nan
        g, x = (kept, hidden) if rows is None else (kept[rows], hidden[rows])
        d_weight = weight.new_empty(weight.shape).addmm_(g.T, x, beta=0, alpha=scale)
    if needs[2]:
        d_bias = (kept.sum(0, dtype=torch.float32) * scale).to(weight.dtype)
    return d_hidden, d_weight, d_bias
