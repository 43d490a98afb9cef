"""Fused linear layer and cross-entropy; the logits are never stored whole.

Contents: the torch implementation (chunks of rows), the Triton kernels (tiles for losses alone and for losses by row,
library products with one kernel between them for a scalar loss with its gradients). `operators/` gives both their
gradients. Letters: N rows, M rows that carry a loss, D width, V width of the vocabulary slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reca_kernels import tuning
from reca_kernels.language import ceil_div, jit, launch, tl
from reca_kernels.product import product

# bytes of fp32 logits on a CPU: larger is hardly faster, and it must stay small next to weight
_CHUNK_BYTES = 24 * 2**20
_CHUNK_BYTES_GPU = 256 * 2**20  # a GPU is idle in small products, and between their launches


# ---- torch: chunks of rows, with losses and gradients computed together --------------------------
def chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
    by_row: Tensor | None,
    needs: Sequence[bool],
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
    # where all rows are chosen, all are written below
    made = torch.empty_like if rows is None else torch.zeros_like
    d_hidden = made(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs[2] else None
    room_bytes = _CHUNK_BYTES_GPU if hidden.is_cuda else _CHUNK_BYTES
    step = min(max(room_bytes // (4 * (stop - start)), 16), max(len(targets), 1))
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
            if rows is None:
                torch.mm(residual, slice_w, out=d_hidden[part]).mul_(scale)
            else:
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
# bytes of the derivative with respect to the logits; only one slab of it is ever stored
_SLAB_BYTES = 64 * 2**20


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


def log_sums(
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
        launch(
            log_sum_kernel, (row_tiles, splits),
            hidden, weight[start:stop], None if bias is None else bias[start:stop], rows, targets,
            top, mass, hit, total, m, hidden.shape[1], stop - start, hidden.stride(0),
            weight.stride(0), span, HAS_ROWS=rows is not None, HAS_BIAS=bias is not None,
            SMOOTH=smoothing > 0, PRECISION=tuning.precision(), **block,
        )  # fmt: skip
    lse = torch.logsumexp(top + mass.log(), dim=0)
    mean = total.sum(0) / (stop - start)
    return lse, lse - (1 - smoothing) * hit.sum(0) - smoothing * mean


def slabs(
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
    needs: Sequence[bool],
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
        launch(
            residual_kernel, (ceil_div(m, block["BM"]), ceil_div(width, block["BV"])),
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


# ---- a scalar loss with its gradients: library products, and one kernel in place between them ------
_FUSED_BYTES = (64 * 2**20, 512 * 2**20)  # least and most bytes of a chunk of logits


@jit
def softmax_kernel(
    Z, AIM, LOSS, V, width, z_row, smoothing,
    SMOOTH: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """In place, per row: logits Z[V] become the derivative of LOSS[row], and 0 from V to `width`."""
    row = tl.program_id(0)
    base = Z + row.to(tl.int64) * z_row
    aim = tl.load(AIM + row)
    top, mass, hit, total = float("-inf"), 0.0, 0.0, 0.0
    for first in range(0, V, BV):
        column = first + tl.arange(0, BV)
        known = column < V
        # up to `width`, a multiple of 64: loads limited by V are of single numbers; what lies between is finite
        z = tl.load(base + column, mask=column < width, other=0.0).to(tl.float32)
        z = tl.where(known, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # only banned columns so far
        mass = mass * tl.exp(top - safe) + tl.sum(tl.exp(z - safe), 0)
        top = higher
        # by a sum over all threads: one that read Z[aim] alone could come after another's store below
        hit += tl.sum(tl.where(column == aim, z, 0.0), 0)
        if SMOOTH:
            total += tl.sum(tl.where(known, z, 0.0), 0)
    lse = top + tl.log(mass)
    loss = lse - (1.0 - smoothing) * hit
    if SMOOTH:
        loss -= smoothing * (total / V)
    tl.store(LOSS + row, loss)
    for first in range(0, width, BV):
        column = first + tl.arange(0, BV)
        z = tl.load(base + column, mask=column < width, other=0.0).to(tl.float32)
        g = tl.exp(z - lse) - smoothing / V - tl.where(column == aim, 1.0 - smoothing, 0.0)
        g = tl.where(column < V, g, 0.0)
        tl.store(base + column, g.to(Z.dtype.element_ty), mask=column < width)


def fused(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    vocab: tuple[int, int],
    smoothing: float,
    needs: Sequence[bool],
    scale: float,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Losses [M] and, as `needs` asks, gradients of hidden, weight and bias times `scale`: 6 N D V operations.

    A chunk of logits takes about as many bytes as the weights, whose gradient every chunk adds to; all logits are one
    chunk where they take no more memory than a smaller one and that sum. A slice of the vocabulary that is no
    multiple of 64 is copied into one that is: libraries have no fast product otherwise.
    """
    (start, stop), m = vocab, len(targets)
    columns, width = stop - start, hidden.shape[1]
    wide = columns if columns % 64 == 0 else ceil_div(columns, 128) * 128
    part_w, part_b = weight[start:stop], None if bias is None else bias[start:stop]
    if wide != columns:
        part_w = F.pad(part_w, (0, 0, 0, wide - columns))
        part_b = None if part_b is None else F.pad(part_b, (0, wide - columns))
    losses = torch.empty(m, dtype=torch.float32, device=hidden.device)
    d_hidden = d_weight = None
    if needs[0]:  # what the products below write need not be 0
        d_hidden = hidden.new_empty(hidden.shape) if rows is None else torch.zeros_like(hidden)
    if needs[1]:
        d_weight = weight.new_empty(weight.shape)
        d_weight[:start] = 0
        d_weight[stop if m else start :] = 0
    d_bias = hidden.new_zeros(wide, dtype=torch.float32) if needs[2] else None
    size = hidden.element_size()
    room_bytes = min(max(wide * width * size, _FUSED_BYTES[0]), _FUSED_BYTES[1])
    if d_weight is not None and wide == columns and hidden.dtype != torch.float32:
        whole, summed = m * wide * size, 4 * wide * width
        room_bytes = whole if whole <= room_bytes + summed else room_bytes
    chunks = max(ceil_div(m, max(room_bytes // (wide * size), 1)), 1)
    step = max(ceil_div(m, chunks * 128) * 128, 128)
    room = hidden.new_empty(min(step, m), wide)
    total, factor, direct = None, 1.0, False  # the sum over chunks, in fp32 where there are several
    if d_weight is not None:
        if wide == columns and (m <= step or hidden.dtype == torch.float32):
            total, factor, direct = d_weight[start:stop], scale, True
        else:
            total = hidden.new_empty(wide, width, dtype=torch.float32)
    for first in range(0, m, step):
        part = slice(first, min(first + step, m))
        x = hidden[part if rows is None else rows[part]]
        z = room[: len(x)]
        if part_b is None:
            torch.mm(x, part_w.T, out=z)
        else:
            torch.addmm(part_b, x, part_w.T, out=z)
        launch(
            softmax_kernel, (len(x),), z, targets[part], losses[part], columns, wide, z.stride(0),
            float(smoothing), SMOOTH=smoothing > 0, **tuning.softmax(wide),
        )  # fmt: skip
        if d_bias is not None:
            d_bias += z.sum(0, dtype=torch.float32)
        if d_hidden is not None and rows is None:
            d_hidden[part].addmm_(z, part_w, beta=0, alpha=scale)
        elif d_hidden is not None and rows is not None:
            d_hidden.index_copy_(0, rows[part], (z @ part_w).mul_(scale))
        if total is not None:
            _add_outer(total, z.T, x, factor, 1.0 if first else 0.0)
    if m and d_weight is not None and total is not None and not direct:
        torch.mul(total[:columns], scale, out=d_weight[start:stop])
    if d_bias is not None and bias is not None:
        d_bias = F.pad(d_bias[:columns] * scale, (start, len(bias) - stop)).to(bias.dtype)
    return losses, (d_hidden, d_weight, d_bias)


def _add_outer(total: Tensor, a: Tensor, b: Tensor, factor: float, keep: float) -> None:
    """Make total [M, N] keep * total + factor * a [M, K] @ b [K, N], which is not rounded to its factors' type.

    With 0 for `keep` the total is not read, whatever it holds.
    """
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=factor, beta=keep)
    elif total.is_cuda and hasattr(torch.ops.aten.addmm, "dtype"):
        torch.addmm(total, a, b, alpha=factor, beta=keep, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype), alpha=factor, beta=keep)
