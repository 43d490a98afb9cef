"""Attention over packed samples by torch's own kernels: one SDPA per interval of rows with one range of keys.

Letters: T tokens, Q queries, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.nn import functional as F

from reca_kernels.intervals import Group, Interval, intervals
from reca_kernels.layout import Layout


def by_intervals(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention output [Q, H, E] for q [Q, H, E], k and v [T, K, E], using torch's own kernels."""
    share = q.shape[1] // k.shape[1]
    if share > 1 and not q.is_cuda:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    outputs = [_group(q, k, v, group, scale) for group in intervals(layout, q.dtype)]
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else q * 0


def _group(q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float) -> Tensor:
    """Outputs [batch * rows, H, E] for the samples of a group, from q [Q, H, E], k and v [T, K, E]."""
    batch, rows, columns = group.batch, group.rows, group.columns
    queries = q[group.first_query : group.first_query + batch * rows].unflatten(0, (batch, rows))
    keys, values = (
        t[group.first_key : group.first_key + batch * columns].unflatten(0, (batch, columns))
        for t in (k, v)
    )
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    # split, not sliced: its gradient is one copy, not a sum of tensors that are 0 elsewhere
    parts = queries.split([one.rows.stop - one.rows.start for one in group.intervals], dim=2)
    outputs = []
    for part, interval in zip(parts, group.intervals, strict=True):
        seen, theirs = keys, values
        if interval.columns != slice(0, columns):
            seen, theirs = keys[:, :, interval.columns], values[:, :, interval.columns]
        grouped = keys.shape[1] != part.shape[1]
        if grouped and not _takes_groups(part, seen, theirs, interval):
            share, grouped = part.shape[1] // keys.shape[1], False
            seen, theirs = (t.repeat_interleave(share, dim=1) for t in (seen, theirs))
        options = {
            "attn_mask": interval.mask, "is_causal": interval.causal, "scale": scale,
            "enable_gqa": grouped,
        }  # fmt: skip
        output = _attention(part, seen, theirs, options)
        outputs.append(output.transpose(1, 2))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).flatten(0, 1)


def _takes_groups(q: Tensor, k: Tensor, v: Tensor, interval: Interval) -> bool:
    """Whether a fast kernel reads keys that several query heads share: they need not be repeated then."""
    given = SDPAParams(q, k, v, interval.mask, 0.0, interval.causal, True)
    return torch.backends.cuda.can_use_flash_attention(given)


def _attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """SDPA, on a GPU with gradients that have equal bits in every run, if a kernel has such."""
    fixed = q.is_cuda and torch.is_grad_enabled()
    if fixed:  # torch's plain implementation multiplies by cuBLAS, which refuses to be asked for a fixed order
        mask, causal, grouped = (options[key] for key in ("attn_mask", "is_causal", "enable_gqa"))
        given = SDPAParams(q, k, v, mask, 0.0, causal, grouped)
        cuda = torch.backends.cuda
        fixed = cuda.can_use_flash_attention(given) or cuda.can_use_efficient_attention(given)
    if fixed:
        return _Repeatable.apply(q, k, v, options)
    return F.scaled_dot_product_attention(q, k, v, **options)


class _Repeatable(torch.autograd.Function):
    """SDPA whose gradients have equal bits in every run: on a GPU torch's own have not, unless they are asked for."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        # no graph is kept: checkpointing could not drop it, and would recompute the block once more for it
        ctx.save_for_backward(q, k, v)
        ctx.options = options
        with _in_a_fixed_order():
            return F.scaled_dot_product_attention(q, k, v, **options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        # before the fixed order is set: this may recompute the block, which that is not to change
        q, k, v = ctx.saved_tensors
        out, leaves = _attended(q, k, v, ctx.options, ctx.needs_input_grad[:3])
        with _in_a_fixed_order():
            found = iter(torch.autograd.grad(out, [t for t in leaves if t.requires_grad], incoming))
        return (*(next(found) if t.requires_grad else None for t in leaves), None)


def _attended(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """The output with a graph of its own, and that graph's leaves."""
    leaves = [t.detach().requires_grad_(need) for t, need in zip((q, k, v), needs, strict=True)]
    with torch.enable_grad(), _in_a_fixed_order():
        return F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], **options), leaves


@contextmanager
def _in_a_fixed_order() -> Iterator[None]:
    """Context in which torch's kernels sum without atomics."""
    settings: Any = torch.utils.deterministic
    fill, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fill


_SCORE_BYTES = 32 * 2**20  # of the fp32 scores that the backward pass below holds at a time


def interval_gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [Q, H, E], k and v [T, K, E], written out, for graphs that autograd does not see into.

    Scores are made again in fp32 (fp64 for such inputs), a few rows at a time.
    """
    share, dtype = q.shape[1] // k.shape[1], q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    d_q = torch.zeros(q.shape, dtype=wide, device=q.device)
    d_k, d_v = (torch.zeros(k.shape, dtype=wide, device=k.device) for _ in range(2))
    q, k, v, d_out = (t.to(wide) for t in (q, k, v, d_out))
    for group in intervals(layout, torch.float32):
        for number in range(group.batch):
            first_query = group.first_query + number * group.rows
            first_key = group.first_key + number * group.columns
            for interval in group.intervals:
                seen = interval.seen(number).to(q.device)
                columns = slice(
                    first_key + interval.columns.start, first_key + interval.columns.stop
                )
                keys, values = (t[columns].repeat_interleave(share, 1) for t in (k, v))
                step = max(_SCORE_BYTES // (4 * max(len(keys) * q.shape[1], 1)), 1)
                for start in range(interval.rows.start, interval.rows.stop, step):
                    stop = min(start + step, interval.rows.stop)
                    rows = slice(first_query + start, first_query + stop)
                    part = seen[start - interval.rows.start : stop - interval.rows.start]
                    scores = torch.einsum("qhe,khe->hqk", q[rows], keys) * scale
                    weights = scores.masked_fill(~part, torch.finfo(wide).min).softmax(-1)
                    weights = weights * part.any(1)[:, None]
                    d_weights = torch.einsum("qhe,khe->hqk", d_out[rows], values)
                    delta = (weights * d_weights).sum(-1, keepdim=True)
                    d_scores = weights * (d_weights - delta) * scale
                    d_q[rows] += torch.einsum("hqk,khe->qhe", d_scores, keys)
                    for total, left, right in (
                        (d_k, d_scores, q[rows]), (d_v, weights, d_out[rows]),
                    ):  # fmt: skip
                        by_head = torch.einsum("hqk,qhe->khe", left, right)
                        total[columns] += by_head.unflatten(1, (-1, share)).sum(2)
    return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype)
