"""Fused linear layer and cross-entropy; the logits are never stored.

Contents: the torch implementation (chunks of rows), the Triton kernels, their autograd
wrapper. Letters: N rows, M rows that carry a loss, D width, V width of the vocabulary slice.
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

_CHUNK_BYTES = (
    24 * 2**20
)  # bytes of fp32 logits: larger is hardly faster, and it must stay small next to weight


# ---- torch: chunks of rows; the gradient of a scalar loss is computed in forward -----------------
class Torch(torch.autograd.Function):
    """Plain torch, 6 N D V operations, with one chunk of logits in memory at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        targets: Tensor,
        vocab: tuple[int, int],
        smoothing: float,
        reduction: str,
    ) -> Tensor:
        """The scalar loss, or losses [M], of hidden [N, D] against `targets` [M]."""
        ctx.save_for_backward(hidden, weight, bias, rows, targets)
        ctx.rest = (vocab, smoothing)
        ctx.scale = 1 / max(len(targets), 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        needs = ctx.needs_input_grad[:3] if ctx.scalar else (False,) * 3
        losses, ctx.gradients = _chunked(
            hidden, weight, bias, rows, targets, vocab, smoothing, None, needs, ctx.scale
        )
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden [N, D], weight [vocabulary, D] and bias [vocabulary].

        For a scalar loss forward has computed them already; otherwise they are computed here.
        """
        gradients, ctx.gradients = ctx.gradients, None
        needs = ctx.needs_input_grad[:3]
        if not ctx.scalar or gradients is None:
            by_row = None if ctx.scalar else incoming
            rest = (*ctx.rest, by_row, needs, ctx.scale)
            _, gradients = _chunked(*ctx.saved_tensors, *rest)
        if ctx.scalar:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(incoming)
        return (*gradients, None, None, None, None, None)


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
    by_row: Tensor | None,
    needs: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """Losses [M] and, if requested by `needs`, gradients of hidden, weight and bias times `scale`.

    `by_row` [M] weights the gradients of the rows.
    """
    start, stop = vocab
    wide = torch.promote_types(hidden.dtype, torch.float32)
    slice_w = weight[start:stop]
    slice_b = None if bias is None else bias[start:stop]
    losses = torch.empty(len(targets), dtype=wide, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs[2] else None
    step = min(max(_CHUNK_BYTES // (4 * (stop - start)), 16), max(len(targets), 1))
    room = hidden.new_empty(step, stop - start)  # one buffer, reused for every chunk
    for first in range(0, len(targets), step):
        part = slice(first, min(first + step, len(targets)))
        chosen_rows = part if rows is None else rows[part]
        x = hidden[chosen_rows]
        logits = room[: len(x)]
        if slice_b is None:
            torch.mm(x, slice_w.T, out=logits)
        else:
            torch.addmm(slice_b, x, slice_w.T, out=logits)
        logits = logits.to(wide)
        losses[part], residual = _softmax_(logits, targets[part], smoothing, any(needs))
        if not any(needs):
            continue
        if by_row is not None:
            residual.mul_(by_row[part].unsqueeze(1))
        if d_bias is not None:
            d_bias[start:stop] += residual.sum(0)
        residual = residual.to(hidden.dtype)
        if d_hidden is not None:
            d_hidden[chosen_rows] = (residual @ slice_w).mul_(scale)
        if d_weight is not None:
            _add_product(d_weight[start:stop], residual.T, x)
    return losses, (
        d_hidden,
        None if d_weight is None else d_weight.mul_(scale).to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(scale).to(bias.dtype),
    )


def _softmax_(
    logits: Tensor, targets: Tensor, smoothing: float, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Losses [M] for logits [M, V]; their derivatives [M, V] overwrite the logits."""
    aim = targets.unsqueeze(1)
    greatest = logits.amax(1, keepdim=True)
    hit = logits.gather(1, aim)
    mean = logits.mean(1, keepdim=True) if smoothing else None
    mass = logits.sub_(greatest).exp_().sum(1, keepdim=True)
    loss = greatest + mass.log() - (1 - smoothing) * hit
    if mean is not None:  # avoids 0 times a mean of -inf, which is nan
        loss = loss - smoothing * mean
    if differentiate:
        logits.div_(mass)
        logits.scatter_add_(1, aim, torch.full_like(hit, smoothing - 1))
        if smoothing:
            logits.sub_(smoothing / logits.shape[1])
    return loss.squeeze(1), logits


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a [M, K] @ b [K, N] to total [M, N]; low-precision chunks are accumulated in fp32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


# ---- Triton: log-sum-exp by tiles; backward recomputes the tiles, one slab of columns at a time --
_SLAB_BYTES = (
    64 * 2**20
)  # bytes of the derivative with respect to the logits; only one slab of it is ever stored


@jit
def logits_tile(
    X, W, B, source, inside, column, known, D, x_row, w_row,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Logits [BM, BV] of rows `source` and columns `column`; -inf outside the slice."""
    total = tl.zeros((BM, BV), tl.float32)
    x_base = X + source.to(tl.int64)[:, None] * x_row
    w_base = W + column.to(tl.int64)[None, :] * w_row
    for first in range(0, D, BD):
        inner = first + tl.arange(0, BD)
        x = tl.load(x_base + inner[None, :], mask=inside[:, None] & (inner < D)[None, :], other=0.0)
        w = tl.load(w_base + inner[:, None], mask=known[None, :] & (inner < D)[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(B + column, mask=known, other=0.0).to(tl.float32)[None, :]
    return tl.where(known[None, :], total, float("-inf"))


@jit
def log_sum_kernel(
    X, W, B, ROWS, AIM, TOP, MASS, HIT, SUM, M, D, V, x_row, w_row, span,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, SMOOTH: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Per row and column split: maximum, sum of exp(logit - maximum), logit of the target [M]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    split = tl.program_id(1)
    inside = row < M
    source = tl.load(ROWS + row, mask=inside, other=0) if HAS_ROWS else row
    aim = tl.load(AIM + row, mask=inside, other=-1)
    top = tl.full((BM,), float("-inf"), tl.float32)
    mass = tl.zeros((BM,), tl.float32)
    hit = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for first in range(split * span, min(V, (split + 1) * span), BV):
        column = first + tl.arange(0, BV)
        known = column < V
        logits = logits_tile(
            X, W, B, source, inside, column, known, D, x_row, w_row,
            HAS_BIAS, PRECISION, BM, BV, BD,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # only masked columns (-inf) so far
        mass = mass * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        top = higher
        hit += tl.sum(tl.where(column[None, :] == aim[:, None], logits, 0.0), 1)
        if SMOOTH:
            total += tl.sum(tl.where(known[None, :], logits, 0.0), 1)
    place = split * M + row
    tl.store(TOP + place, top, mask=inside)
    tl.store(MASS + place, mass, mask=inside)
    tl.store(HIT + place, hit, mask=inside)
    if SMOOTH:
        tl.store(SUM + place, total, mask=inside)


@jit
def residual_kernel(
    X, W, B, ROWS, AIM, LSE, WEIGH, G, M, D, V, x_row, w_row, width, smoothing,
    HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGH: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """G[M, width] = softmax - aim, for the slab of columns at which W, B and AIM start."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    inside, known = row < M, column < width
    source = tl.load(ROWS + row, mask=inside, other=0) if HAS_ROWS else row
    aim = tl.load(AIM + row, mask=inside, other=-1)
    lse = tl.load(LSE + row, mask=inside, other=0.0)
    logits = logits_tile(
        X, W, B, source, inside, column, known, D, x_row, w_row, HAS_BIAS, PRECISION, BM, BV, BD
    )
    g = tl.exp(logits - lse[:, None]) - smoothing / V
    g -= tl.where(column[None, :] == aim[:, None], 1.0 - smoothing, 0.0)
    if HAS_WEIGH:
        g *= tl.load(WEIGH + row, mask=inside, other=0.0)[:, None]
    place = G + row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(place, g.to(G.dtype.element_ty), mask=inside[:, None] & known[None, :])


class Triton(torch.autograd.Function):
    """Saves one log-sum-exp per row; forward takes 2 N D V operations, backward 6 N D V."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        targets: Tensor,
        vocab: tuple[int, int],
        smoothing: float,
        reduction: str,
    ) -> Tensor:
        """The scalar loss, or losses [M], of hidden [N, D] against `targets` [M]."""
        hidden, weight = dense_rows(hidden), dense_rows(weight)
        bias = None if bias is None else bias.contiguous()
        lse, losses = _log_sums(hidden, weight, bias, rows, targets, vocab, smoothing)
        ctx.save_for_backward(hidden, weight, bias, rows, targets, lse)
        ctx.rest = (vocab, smoothing)
        ctx.scale = 1 / max(len(targets), 1) if reduction == "mean" else 1.0
        ctx.scalar = reduction != "none"
        return losses.sum() * ctx.scale if ctx.scalar else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """For each slab, the derivative of the logits [M, slab] and its products with weight and hidden."""
        scale = torch.full((1,), ctx.scale, dtype=torch.float32, device=incoming.device)
        if ctx.scalar:
            scale = scale * incoming.float()
        weigh = None if ctx.scalar else incoming.float().contiguous()
        rest = (*ctx.rest, weigh, scale, ctx.needs_input_grad)
        gradients = _slabs(*ctx.saved_tensors, *rest)
        return (*gradients, None, None, None, None, None)


def _log_sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and loss of each row, both fp32 [M]."""
    (start, stop), m, block = vocab, len(targets), tuning.cross_entropy(hidden.dtype)
    row_tiles, column_tiles = ceil_div(m, block["BM"]), ceil_div(stop - start, block["BV"])
    # enough programs for a large GPU; the split depends on sizes only, so the order of sums is fixed
    splits = min(max(512 // max(row_tiles, 1), 1), column_tiles)
    span = ceil_div(column_tiles, splits) * block["BV"]
    splits = ceil_div(stop - start, span)
    top, mass, hit, total = hidden.new_zeros(4, splits, m, dtype=torch.float32).unbind(0)
    if m:
        log_sum_kernel[(row_tiles, splits)](
            hidden, weight[start:stop], None if bias is None else bias[start:stop], rows, targets,
            top, mass, hit, total, m, hidden.shape[1], stop - start, hidden.stride(0),
            weight.stride(0), span, HAS_ROWS=rows is not None, HAS_BIAS=bias is not None,
            SMOOTH=smoothing > 0, PRECISION=tuning.precision(), **block,
        )  # fmt: skip
    lse = torch.logsumexp(top + mass.log(), dim=0)
    mean = total.sum(0) / (stop - start)
    return lse, lse - (1 - smoothing) * hit.sum(0) - smoothing * mean


def _slabs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
    weigh: Tensor | None,
    scale: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden [N, D], weight [vocabulary, D] and bias [vocabulary]; None if not needed."""
    (start, stop), m, block = vocab, len(targets), tuning.cross_entropy(hidden.dtype)
    d_weight = torch.zeros_like(weight) if needs[1] else None
    d_bias = torch.zeros_like(bias) if needs[2] and bias is not None else None
    d_rows = hidden.new_zeros(m, hidden.shape[1], dtype=torch.float32) if needs[0] else None
    slab = max(_SLAB_BYTES // (hidden.element_size() * max(m, 1)) // 128 * 128, 128)
    for first in range(0, stop - start if m else 0, slab):
        width = min(slab, stop - start - first)
        part = slice(start + first, start + first + width)
        g = hidden.new_empty(m, width)
        residual_kernel[(ceil_div(m, block["BM"]), ceil_div(width, block["BV"]))](
            hidden, weight[part], None if bias is None else bias[part], rows, targets - first, lse,
            weigh, g, m, hidden.shape[1], stop - start, hidden.stride(0), weight.stride(0),
            width, float(smoothing), HAS_ROWS=rows is not None, HAS_BIAS=bias is not None,
            HAS_WEIGH=weigh is not None, PRECISION=tuning.precision(), **block,
        )  # fmt: skip
        if d_rows is not None:
            product(g, weight[part], None, scale, d_rows, add=True)
        if d_weight is not None:
            product(g.T, hidden, rows, scale, d_weight[part])
        if d_bias is not None:
            d_bias[part] = (g.sum(0, dtype=torch.float32) * scale).to(d_bias.dtype)
    d_hidden = None if d_rows is None else d_rows.to(hidden.dtype)
    if d_hidden is not None and rows is not None:
        d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_hidden)
    return d_hidden, d_weight, d_bias
