"""Attention over packed samples in Triton. The mask is described per token (`Layout`), never dense.

`library.py` is the torch implementation; `operators/` gives both their gradients. Letters: T tokens, Q queries, H
heads, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reca_kernels import tuning
from reca_kernels.language import TensorDescriptor, jit, launch, tl
from reca_kernels.layout import Layout

_LOG2_E = 1.4426950408889634


# ---- flash attention over the tiles that the layout lists ------------------------------------------
@jit
def fetched(place, known, lanes, MASKED: tl.constexpr, WHOLE: tl.constexpr):
    """Numbers at `place`: 0 outside `known` tokens, which matter where MASKED only, and `lanes`, unless WHOLE."""
    if MASKED and WHOLE:
        found = tl.load(place, mask=known, other=0.0)
    elif MASKED:
        found = tl.load(place, mask=known & lanes, other=0.0)
    elif WHOLE:
        found = tl.load(place)
    else:
        found = tl.load(place, mask=lanes, other=0.0)
    return found


@jit
def visible(position, column, sample_q, tag_q, sample_k, tag_k):
    """`Layout.dense` for queries and keys along either axis."""
    kind_q, kind_k = tag_q & 7, tag_k & 7  # values of layout.Kind
    passed = ((kind_k >= 2) & (kind_k <= 4)) | ((kind_k == 1) & (kind_q == 1))
    seen = passed & (column <= position)
    seen = seen | ((kind_k >= 3) & (tag_q == tag_k)) | (kind_k == 4)
    return seen & (sample_q == sample_k)


@jit
def forward_tiles(
    q, K, V, head, SAMPLE, TAG, COLUMNS, first, stop, position, sample_q, tag_q, tokens, scale, k_token,
    v_token, top, mass, total, MASKED: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    E: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Continue the online softmax (top, mass [BQ], total [BQ, BE]) over the key tiles listed at first..stop-1."""
    lane, step = tl.arange(0, BE), tl.arange(0, BK)
    lanes, whole = lane < E, E == BE
    k_near = step[None, :] * k_token + lane[:, None]
    v_near = step[:, None] * v_token + lane[None, :]
    # one tile ahead: the loads below must not wait for it
    upcoming = tl.load(COLUMNS + first, mask=first < stop, other=0)
    for j in range(first, stop):
        start = upcoming
        upcoming = tl.load(COLUMNS + j + 1, mask=j + 1 < stop, other=0)
        far, column = start.to(tl.int64), start + step
        known = column < tokens
        if TMA:
            k, v = tl.trans(K.load([start, head * E])), V.load([start, head * E])
        else:
            k = fetched(K + far * k_token + k_near, known[None, :], lanes[:, None], MASKED, whole)
            v = fetched(V + far * v_token + v_near, known[:, None], lanes[None, :], MASKED, whole)
        s = tl.dot(q, k, input_precision=PRECISION) * scale
        if MASKED:
            sample_k = tl.load(SAMPLE + column, mask=known, other=-2)[None, :]
            tag_k = tl.load(TAG + column, mask=known, other=0)[None, :]
            seen = visible(
                position[:, None],
                column[None, :],
                sample_q[:, None],
                tag_q[:, None],
                sample_k,
                tag_k,
            )
            s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # no visible key so far
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(top - base)
        mass = mass * shrink + tl.sum(p, 1)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision=PRECISION)
        top = higher
    return top, mass, total


@jit
def forward_kernel(
    Q, K, V, OUT, LSE, POSITIONS, SAMPLE, TAG, FIRSTS, LASTS, STARTS, MIDDLES, STOPS, COLUMNS, queries,
    tokens, scale, q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head, SHARE,
    PRECISION: tl.constexpr, TMA: tl.constexpr, E: tl.constexpr, BE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT [BQ, E] for one query tile and head, and LSE [BQ] (+inf for rows without a visible key)."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)  # offsets may pass 2^31
    row, lane = tl.load(FIRSTS + tile) + tl.arange(0, BQ), tl.arange(0, BE)
    inside = row < tl.load(LASTS + tile)
    position = tl.load(POSITIONS + row, mask=inside, other=0)
    sample_q = tl.load(SAMPLE + position, mask=inside, other=-1)
    tag_q = tl.load(TAG + position, mask=inside, other=0)
    valid = inside[:, None] & (lane < E)[None, :]
    far = row.to(tl.int64)[:, None]
    q = tl.load(Q + far * q_token + head * q_head + lane[None, :], mask=valid, other=0.0)
    k_base, v_base, shared = K, V, (head // SHARE).to(tl.int32)
    if not TMA:
        k_base, v_base = K + head // SHARE * k_head, V + head // SHARE * v_head
    top = tl.full((BQ,), float("-inf"), tl.float32)
    mass = tl.zeros((BQ,), tl.float32)
    total = tl.zeros((BQ, BE), tl.float32)
    start, middle, stop = (
        tl.load(STARTS + tile),
        tl.load(MIDDLES + tile),
        tl.load(STOPS + tile),
    )
    top, mass, total = forward_tiles(
        q, k_base, v_base, shared, SAMPLE, TAG, COLUMNS, start, middle, position, sample_q, tag_q, tokens,
        scale, k_token, v_token, top, mass, total, False, PRECISION, TMA, E, BE, BK,
    )  # fmt: skip
    top, mass, total = forward_tiles(
        q, k_base, v_base, shared, SAMPLE, TAG, COLUMNS, middle, stop, position, sample_q, tag_q, tokens,
        scale, k_token, v_token, top, mass, total, True, PRECISION, TMA, E, BE, BK,
    )  # fmt: skip
    blind = mass == 0.0
    out = total / tl.where(blind, 1.0, mass)[:, None]
    lse = tl.where(blind, float("inf"), top + tl.log2(mass))
    place = OUT + far * o_token + head * o_head + lane[None, :]
    tl.store(place, out.to(OUT.dtype.element_ty), mask=valid)
    tl.store(LSE + head * queries + row, lse, mask=inside)


@jit
def query_gradient_tiles(
    q, d_out, K, V, head, SAMPLE, TAG, COLUMNS, first, stop, position, sample_q, tag_q, tokens, scale,
    k_token, v_token, lse, delta, total, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add the gradient [BQ, BE] of the queries that flows through the listed key tiles."""
    lane, step = tl.arange(0, BE), tl.arange(0, BK)
    lanes, whole = (lane < E)[None, :], E == BE
    k_near = step[:, None] * k_token + lane[None, :]
    v_near = step[:, None] * v_token + lane[None, :]
    upcoming = tl.load(COLUMNS + first, mask=first < stop, other=0)
    for j in range(first, stop):
        start = upcoming
        upcoming = tl.load(COLUMNS + j + 1, mask=j + 1 < stop, other=0)
        far, column = start.to(tl.int64), start + step
        known = column < tokens
        if TMA:
            k, v = K.load([start, head * E]), V.load([start, head * E])
        else:
            k = fetched(K + far * k_token + k_near, known[:, None], lanes, MASKED, whole)
            v = fetched(V + far * v_token + v_near, known[:, None], lanes, MASKED, whole)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if MASKED:
            sample_k = tl.load(SAMPLE + column, mask=known, other=-2)[None, :]
            tag_k = tl.load(TAG + column, mask=known, other=0)[None, :]
            seen = visible(
                position[:, None],
                column[None, :],
                sample_q[:, None],
                tag_q[:, None],
                sample_k,
                tag_k,
            )
            s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s - lse[:, None])
        d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        d_s = p * (d_p - delta[:, None])
        total = tl.dot(d_s.to(k.dtype), k, total, input_precision=PRECISION)
    return total


@jit
def query_gradient_kernel(
    Q, K, V, OUT, DOUT, LSE, DELTA, DQ, POSITIONS, SAMPLE, TAG, FIRSTS, LASTS, STARTS, MIDDLES, STOPS,
    COLUMNS, queries, tokens, scale, natural, q_token, q_head, k_token, k_head, v_token, v_head, o_token,
    o_head, d_token, d_head, SHARE, PRECISION: tl.constexpr, TMA: tl.constexpr, E: tl.constexpr, BE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """DQ [BQ, E] for one query tile and head, and DELTA [BQ], the products of OUT and its gradient."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)  # offsets may pass 2^31
    row, lane = tl.load(FIRSTS + tile) + tl.arange(0, BQ), tl.arange(0, BE)
    inside = row < tl.load(LASTS + tile)
    position = tl.load(POSITIONS + row, mask=inside, other=0)
    sample_q = tl.load(SAMPLE + position, mask=inside, other=-1)
    tag_q = tl.load(TAG + position, mask=inside, other=0)
    valid = inside[:, None] & (lane < E)[None, :]
    far = row.to(tl.int64)[:, None]
    q = tl.load(Q + far * q_token + head * q_head + lane[None, :], mask=valid, other=0.0)
    d_out = tl.load(DOUT + far * d_token + head * d_head + lane[None, :], mask=valid, other=0.0)
    lse = tl.load(LSE + head * queries + row, mask=inside, other=float("inf"))
    place = far * o_token + head * o_head + lane[None, :]
    out = tl.load(OUT + place, mask=valid, other=0.0)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    tl.store(DELTA + head * queries + row, delta, mask=inside)
    k_base, v_base, shared = K, V, (head // SHARE).to(tl.int32)
    if not TMA:
        k_base, v_base = K + head // SHARE * k_head, V + head // SHARE * v_head
    total = tl.zeros((BQ, BE), tl.float32)
    start, middle, stop = (
        tl.load(STARTS + tile),
        tl.load(MIDDLES + tile),
        tl.load(STOPS + tile),
    )
    total = query_gradient_tiles(
        q, d_out, k_base, v_base, shared, SAMPLE, TAG, COLUMNS, start, middle, position, sample_q, tag_q, tokens,
        scale, k_token, v_token, lse, delta, total, False, PRECISION, TMA, E, BE, BK,
    )  # fmt: skip
    total = query_gradient_tiles(
        q, d_out, k_base, v_base, shared, SAMPLE, TAG, COLUMNS, middle, stop, position, sample_q, tag_q, tokens,
        scale, k_token, v_token, lse, delta, total, True, PRECISION, TMA, E, BE, BK,
    )  # fmt: skip
    tl.store(DQ + place, (total * natural).to(DQ.dtype.element_ty), mask=valid)


@jit
def key_gradient_tiles(
    k, v, Q, DOUT, LSE, DELTA, POSITIONS, SAMPLE, TAG, ROWS, first, stop, column, sample_k, tag_k, queries,
    scale, q_token, q_head, o_token, o_head, head, SHARE, d_k, d_v, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Add the gradients [BK, BE] of keys and values that flow through the listed query tiles of SHARE heads.

    Scores are transposed, [BK, BQ]: their weights are then operands in registers of the next products. The heads are
    one loop: each of its own would fill and drain the pipeline of loads.
    """
    lane, step = tl.arange(0, BE), tl.arange(0, BQ)
    lanes, whole = lane < E, E == BE
    q_near = step[None, :] * q_token + lane[:, None]
    o_near = step[:, None] * o_token + lane[None, :]
    j, upcoming, next_head = first, tl.load(ROWS + first, mask=first < stop, other=0), head
    for _ in range(0, (stop - first) * SHARE):
        start, head, far = upcoming, next_head, upcoming.to(tl.int64)
        done = j + 1 == stop
        next_head = tl.where(done, head + 1, head)
        j = tl.where(done, first, j + 1)
        upcoming = tl.load(ROWS + j)
        row, wide_head = start + step, head.to(tl.int64)
        inside = row < queries
        if TMA:
            q_t, d_out = tl.trans(Q.load([start, head * E])), DOUT.load([start, head * E])
        else:
            q_place = Q + wide_head * q_head + far * q_token + q_near
            o_place = DOUT + wide_head * o_head + far * o_token + o_near
            q_t = fetched(q_place, inside[None, :], lanes[:, None], MASKED, whole)
            d_out = fetched(o_place, inside[:, None], lanes[None, :], MASKED, whole)
        s = tl.dot(k, q_t, input_precision=PRECISION) * scale
        place = wide_head * queries + row
        if MASKED:
            lse = tl.load(LSE + place, mask=inside, other=float("inf"))
            delta = tl.load(DELTA + place, mask=inside, other=0.0)
            position = tl.load(POSITIONS + row, mask=inside, other=0)
            sample_q = tl.load(SAMPLE + position, mask=inside, other=-1)[None, :]
            tag_q = tl.load(TAG + position, mask=inside, other=0)[None, :]
            seen = visible(
                position[None, :],
                column[:, None],
                sample_q,
                tag_q,
                sample_k[:, None],
                tag_k[:, None],
            )
            s = tl.where(seen, s, float("-inf"))
        else:
            lse, delta = tl.load(LSE + place), tl.load(DELTA + place)
        p = tl.exp2(s - lse[None, :])
        d_v = tl.dot(p.to(d_out.dtype), d_out, d_v, input_precision=PRECISION)
        d_p = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
        d_s = (p * (d_p - delta[None, :])).to(q_t.dtype)
        d_k = tl.dot(d_s, tl.trans(q_t), d_k, input_precision=PRECISION)
    return d_k, d_v


@jit
def key_gradient_kernel(
    Q, K, V, DOUT, LSE, DELTA, DK, DV, POSITIONS, SAMPLE, TAG, FIRSTS, LASTS, STARTS, MIDDLES, STOPS, ROWS,
    queries, tokens, scale, natural, q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head,
    d_token, d_head, SHARE, PRECISION: tl.constexpr, TMA: tl.constexpr, E: tl.constexpr, BE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """DK and DV [BK, E] for one key tile and key head, summed over its query heads in a fixed order."""
    tile, group = tl.program_id(0), tl.program_id(1).to(tl.int64)  # offsets may pass 2^31
    column, lane = tl.load(FIRSTS + tile) + tl.arange(0, BK), tl.arange(0, BE)
    known = column < tl.load(LASTS + tile)
    sample_k = tl.load(SAMPLE + column, mask=known, other=-2)
    tag_k = tl.load(TAG + column, mask=known, other=0)
    valid = known[:, None] & (lane < E)[None, :]
    far = column.to(tl.int64)[:, None]
    k = tl.load(K + far * k_token + group * k_head + lane[None, :], mask=valid, other=0.0)
    v = tl.load(V + far * v_token + group * v_head + lane[None, :], mask=valid, other=0.0)
    d_k = tl.zeros((BK, BE), tl.float32)
    d_v = tl.zeros((BK, BE), tl.float32)
    start, middle, stop = (
        tl.load(STARTS + tile),
        tl.load(MIDDLES + tile),
        tl.load(STOPS + tile),
    )
    head = (group * SHARE).to(tl.int32)
    d_k, d_v = key_gradient_tiles(
        k, v, Q, DOUT, LSE, DELTA, POSITIONS, SAMPLE, TAG, ROWS, start, middle, column, sample_k, tag_k,
        queries, scale, q_token, q_head, o_token, o_head, head, SHARE, d_k, d_v, False, PRECISION, TMA, E,
        BE, BQ,
    )  # fmt: skip
    d_k, d_v = key_gradient_tiles(
        k, v, Q, DOUT, LSE, DELTA, POSITIONS, SAMPLE, TAG, ROWS, middle, stop, column, sample_k, tag_k,
        queries, scale, q_token, q_head, o_token, o_head, head, SHARE, d_k, d_v, True, PRECISION, TMA, E,
        BE, BQ,
    )  # fmt: skip
    place = far * d_token + group * d_head + lane[None, :]
    tl.store(DK + place, (d_k * natural).to(DK.dtype.element_ty), mask=valid)
    tl.store(DV + place, d_v.to(DV.dtype.element_ty), mask=valid)


def tiled(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> tuple[Tensor, Tensor]:
    """Outputs [Q, H, E] and log-sum-exps [H, Q] (base 2) for q [Q, H, E], k and v [T, K, E]."""
    q, k, v = (_dense(t) for t in (q, k, v))
    queries, heads, width = q.shape
    block = tuning.attention("forward", q.dtype, width, q.device, layout.long)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, queries, dtype=torch.float32, device=q.device)
    if queries:
        lists = layout.tiles(block["BQ"], block["BK"])
        tma, k_given, v_given = _read(block, "BK", k, v)
        launch(
            forward_kernel, (len(lists.starts), heads), q, k_given, v_given, out, lse, layout.query_positions,
            layout.sample, layout.tag, *lists, queries, layout.tokens, scale * _LOG2_E,
            *_strides(q, k, v, out), heads // k.shape[1], PRECISION=tuning.precision(), TMA=tma,
            E=width, **block,
        )  # fmt: skip
    return out, lse


def tiled_gradients(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Layout,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q [Q, H, E], k and v [T, K, E]; no two programs write the same result."""
    d_out, q, k, v = (_dense(t) for t in (d_out, q, k, v))
    queries, heads, width = q.shape
    d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    d_k, d_v = (torch.zeros(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    if not queries:
        return d_q, d_k, d_v
    share, scales = heads // k.shape[1], (scale * _LOG2_E, scale)
    delta, out = torch.empty_like(lse), out.contiguous()  # with the strides of d_q
    tokens = (layout.query_positions, layout.sample, layout.tag)
    block = tuning.attention("query", q.dtype, width, q.device, layout.long)
    lists = layout.tiles(block["BQ"], block["BK"])
    tma, k_given, v_given = _read(block, "BK", k, v)
    launch(
        query_gradient_kernel, (len(lists.starts), heads), q, k_given, v_given, out, d_out, lse, delta, d_q,
        *tokens,
        *lists, queries, layout.tokens, *scales, *_strides(q, k, v, out, d_out), share, PRECISION=tuning.precision(),
        TMA=tma, E=width, **block,
    )  # fmt: skip
    block = tuning.attention("key", q.dtype, width, q.device, layout.long)
    lists = layout.tiles(block["BQ"], block["BK"], by_key=True)
    tma, q_given, o_given = _read(block, "BQ", q, d_out)
    launch(
        key_gradient_kernel, (len(lists.starts), k.shape[1]), q_given, k, v, o_given, lse, delta, d_k, d_v,
        *tokens, *lists, queries, layout.tokens, *scales, *_strides(q, k, v, d_out, d_k), share,
        PRECISION=tuning.precision(), TMA=tma, E=width, **block,
    )  # fmt: skip
    return d_q, d_k, d_v


def _read(block: dict[str, int], rows: str, *tensors: Tensor) -> tuple[Any, ...]:
    """How a kernel reads tiles of `block[rows]` tokens of one head: whether by TMA, and the arguments for it.

    The hardware's copies need rows of 16 bytes and heads side by side; a head that fills no tile would be read with
    its neighbour.
    """
    if not block.pop("TMA", 0) or TensorDescriptor is None:
        return (False, *tensors)
    for t in tensors:
        step = t.element_size() * t.stride(0)
        beside = t.shape[1] == 1 or t.stride(1) == t.shape[2]
        if t.shape[2] != block["BE"] or not beside or step % 16 or step == 0 or t.data_ptr() % 16:
            return (False, *tensors)
    flat = [(t, [t.shape[0], t.shape[1] * t.shape[2]], [t.stride(0), 1]) for t in tensors]
    tile = [block[rows], block["BE"]]
    return (True, *(TensorDescriptor(*one, tile) for one in flat))


def _dense(t: Tensor) -> Tensor:
    """The tensor with a dense last dimension, copied only if necessary."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [t.stride(i) for t in tensors for i in (0, 1)]
