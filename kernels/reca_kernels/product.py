"""Matrix product with gathered rows of the second factor, shared by the backward passes of the losses.

Each program owns a tile of the result and adds in a fixed order: no atomics, bitwise reproducible.
"""

from __future__ import annotations

from torch import Tensor

from reca_kernels import tuning
from reca_kernels.language import ceil_div, jit, launch, tl


@jit
def product_kernel(
    A, B, ROWS, SCALE, OUT, M, N, K, a_row, a_column, b_row, out_row, out_split, span,
    HAS_ROWS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT[split] (+)= SCALE * A[M, part of K] @ B[ROWS[part of K], N]; the part has length `span`."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    in_rows, in_columns = row < M, column < N
    total = tl.zeros((BM, BN), tl.float32)
    a_base = A + row.to(tl.int64)[:, None] * a_row
    for first in range(split * span, min(K, (split + 1) * span), BK):
        inner = first + tl.arange(0, BK)
        known = inner < K
        source = tl.load(ROWS + inner, mask=known, other=0) if HAS_ROWS else inner
        a = tl.load(
            a_base + inner.to(tl.int64)[None, :] * a_column,
            mask=in_rows[:, None] & known[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            B + source.to(tl.int64)[:, None] * b_row + column[None, :],
            mask=known[:, None] & in_columns[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total *= tl.load(SCALE)
    place = (
        OUT + split.to(tl.int64) * out_split + row.to(tl.int64)[:, None] * out_row + column[None, :]
    )
    inside = in_rows[:, None] & in_columns[None, :]
    if ADD:
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(OUT.dtype.element_ty), mask=inside)


def product(
    a: Tensor, b: Tensor, rows: Tensor | None, scale: Tensor, out: Tensor, *, add: bool = False
) -> None:
    """Out (+)= scale * a @ b[rows]: a [M, K] of any strides, b [*, N] and out [M, N] with dense rows.

    A three-dimensional `out` [S, M, N] receives the S partial sums over K separately.
    """
    splits = out.shape[0] if out.dim() == 3 else 1
    m, n = out.shape[-2:]
    block = tuning.product(a.dtype)
    span = ceil_div(ceil_div(a.shape[1], splits), block["BK"]) * block["BK"]
    grid = (ceil_div(m, block["BM"]), ceil_div(n, block["BN"]), splits)
    if not (m and n):
        return
    launch(
        product_kernel, grid, a, b, rows, scale, out, m, n, a.shape[1], a.stride(0), a.stride(1), b.stride(0),
        out.stride(-2), out.stride(0) if splits > 1 else 0, max(span, 1),
        HAS_ROWS=rows is not None, ADD=add, PRECISION=tuning.precision(), **block,
    )  # fmt: skip


@jit
def scale_kernel(X, FACTOR, count, BLOCK: tl.constexpr):
    """X[count] times FACTOR[1], in place; 1 costs a launch only, and no wait for the host to know it."""
    factor = tl.load(FACTOR).to(tl.float32)
    if factor != 1.0:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(X + place, mask=place < count, other=0.0)
        tl.store(X + place, (x.to(tl.float32) * factor).to(X.dtype.element_ty), mask=place < count)


def scaled_(tensor: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous tensor by `factor` [], in place: `mul_` by a tensor reads and writes 16 bits at a time."""
    block = tuning.scale()
    if tensor.numel():
        launch(
            scale_kernel,
            (ceil_div(tensor.numel(), block["BLOCK"]),),
            tensor,
            factor,
            tensor.numel(),
            **block,
        )
