"""The public functions: they check their inputs and call the implementation that dispatch chooses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reca_kernels import attention, cross_entropy, flow, tuning
from reca_kernels.dispatch import Implementation, chosen
from reca_kernels.inputs import autocast, check_linear, check_reduction, reduced
from reca_kernels.layout import Layout

Reduction = Literal["mean", "sum", "none"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    vocab: tuple[int, int] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    all_valid: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias` against `targets`, without the logits in memory.

    `hidden` [..., D], `weight` [vocabulary, D], `bias` [vocabulary] or None, `targets` [...] (int64
    or int32). Only the ids `vocab` = (start, stop) take part (None: all); targets are absolute ids
    in start..stop-1, or `ignore_index`: such a row has no loss and no cost. The loss is fp32 (fp64 for fp64
    inputs): "none" gives [...] with 0 in ignored rows, "sum" their sum, "mean" the sum divided by
    the number of rows with a target; with no such row loss and gradients are 0 (where
    `F.cross_entropy` gives nan). Label smoothing is that of `F.cross_entropy` over the slice.
    Gradients reach hidden, weight and bias, once (no second derivative). ValueError on a target
    outside the slice and on shapes, types or devices that do not go together. `all_valid`: the caller knows that every
    target is in the slice, so no value is read back from the device to see.
    """
    rows, wanted = _check_targets(
        hidden, weight, targets, bias, vocab, None if all_valid else ignore_index, label_smoothing
    )
    check_reduction(reduction)
    hidden, weight = autocast(hidden), autocast(weight)
    bias = None if bias is None else autocast(bias)
    start, stop = vocab or (0, weight.shape[0])
    flat = hidden.reshape(-1, hidden.shape[-1])
    which = chosen("linear_cross_entropy", implementation, hidden)
    function = cross_entropy.Triton if which == "triton" else cross_entropy.Torch
    losses = function.apply(
        flat, weight, bias, rows, wanted, (start, stop), label_smoothing, reduction
    )
    return reduced(losses, rows, targets.shape, reduction)


def _check_targets(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab: tuple[int, int] | None,
    ignore_index: int | None,
    label_smoothing: float,
) -> tuple[Tensor | None, Tensor]:
    """Rows [M] that carry a loss (None: all) and their targets [M], counted from the slice's start.

    Without an `ignore_index` the targets' values are not looked at.
    """
    check_linear("linear_cross_entropy", hidden, weight, bias)
    if targets.shape != hidden.shape[:-1] or targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"linear_cross_entropy: targets must be int64 {list(hidden.shape[:-1])}, one id per row "
            f"of hidden, not {targets.dtype} {list(targets.shape)}"
        )
    start, stop = vocab or (0, weight.shape[0])
    if not 0 <= start < stop <= weight.shape[0]:
        raise ValueError(
            f"linear_cross_entropy: vocab ({start}, {stop}) is no part of 0..{weight.shape[0]}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"linear_cross_entropy: label_smoothing {label_smoothing} is not in 0..1")
    flat = targets.reshape(-1).long()
    if ignore_index is None:
        return None, flat - start
    rows = (flat != ignore_index).nonzero().squeeze(1)
    wanted = flat[rows]
    outside = (wanted < start) | (wanted >= stop)
    if bool(outside.any()):
        raise ValueError(
            f"linear_cross_entropy: target {int(wanted[outside][0])} is outside {start}..{stop - 1}; "
            f"give absolute ids of the slice, or ignore_index {ignore_index} for rows without a loss"
        )
    return (None if len(rows) == len(flat) else rows), wanted - start


def flow_matching_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    implementation: Implementation = "auto",
) -> Tensor:
    """Squared error of the velocity `hidden @ weight.T + bias` to its target `noise - clean`.

    `hidden` [..., D], `weight` [C, D], `bias` [C] or None, `clean` and `noise` [..., C] (data: no
    gradient flows to them), `mask` bool [...]: the rows that carry a loss (None: all). A row's loss
    is the mean over its C channels, fp32 (fp64 for fp64 inputs): "none" gives [...] with 0 outside
    the mask, "sum" their sum, "mean" the sum divided by the number of rows; with no row loss and
    gradients are 0. For a noise prediction (target `noise`) give zeros as `clean`. Gradients reach
    hidden, weight and bias, once. ValueError on shapes, types or devices that do not go together.
    """
    rows = _check_data(hidden, weight, bias, clean, noise, mask)
    check_reduction(reduction)
    hidden, weight = autocast(hidden), autocast(weight)
    bias = None if bias is None else autocast(bias)
    flat = hidden.reshape(-1, hidden.shape[-1])
    data = [t.reshape(-1, t.shape[-1]) for t in (clean, noise)]
    obstacle = None
    if weight.shape[0] > tuning.MOST_CHANNELS:
        obstacle = f"{weight.shape[0]} channels are more than {tuning.MOST_CHANNELS}"
    which = chosen("flow_matching_loss", implementation, hidden, obstacle)
    function = flow.Triton if which == "triton" else flow.Torch
    losses = function.apply(flat, weight, bias, *data, rows, reduction)
    return reduced(losses, rows, hidden.shape[:-1], reduction)


def _check_data(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
) -> Tensor | None:
    """Indices [M] of the rows that carry a loss; None: all."""
    check_linear("flow_matching_loss", hidden, weight, bias)
    expected = (*hidden.shape[:-1], weight.shape[0])
    for name, given in (("clean", clean), ("noise", noise)):
        if tuple(given.shape) != expected or given.device != hidden.device:
            raise ValueError(
                f"flow_matching_loss: {name} must be {list(expected)} on {hidden.device}, "
                f"not {list(given.shape)} on {given.device}"
            )
        if given.requires_grad:
            raise ValueError(
                f"flow_matching_loss: {name} is data; detach it, no gradient flows to it"
            )
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != hidden.shape[:-1]:
        raise ValueError(
            f"flow_matching_loss: mask must be bool {list(hidden.shape[:-1])}, "
            f"not {mask.dtype} {list(mask.shape)}"
        )
    return mask.reshape(-1).nonzero().squeeze(1)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Softmax attention [Q, H, E] of packed queries to the keys that `layout` lets each of them see.

    `q` [Q, H, E] (Q = T unless the layout names its queries), `k` and `v` [T, K, E] with H a multiple of
    K (grouped queries: head h reads key head h // (H / K)). `scale` defaults to 1 / sqrt(E). A query
    that may see nothing gives 0, and gets and causes no gradient. Gradients reach q, k and v, once.
    Under autocast q, k and v may differ in type and are cast to autocast's, as
    `scaled_dot_product_attention` casts them. ValueError on shapes, types or devices that do not go
    together.
    """
    q, k, v = autocast(q), autocast(k), autocast(v)
    _check_heads(q, k, v, layout)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    obstacle = None
    if q.shape[-1] > tuning.WIDEST_HEAD:
        obstacle = f"heads of {q.shape[-1]} are wider than {tuning.WIDEST_HEAD}"
    if chosen("block_attention", implementation, q, obstacle) == "triton":
        return attention.Triton.apply(q, k, v, layout, scale)
    return attention.by_intervals(q, k, v, layout, scale)


def _check_heads(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
    """ValueError unless q [Q, H, E], k and v [T, K, E] match each other and the layout."""
    queries = layout.tokens if layout.queries is None else len(layout.queries)
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"block_attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} must be "
            "[Q, H, E], [T, K, E], [T, K, E]"
        )
    if (q.shape[0], k.shape[0]) != (queries, layout.tokens):
        raise ValueError(
            f"block_attention: the layout has {queries} queries and {layout.tokens} keys, "
            f"but q has {q.shape[0]} and k {k.shape[0]} tokens"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"block_attention: {q.shape[1]} heads are no multiple of {k.shape[1]} key heads"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not q.dtype.is_floating_point:
        raise ValueError(
            f"block_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; give one floating type"
        )
    if len({q.device, k.device, v.device, layout.sample.device}) > 1:
        raise ValueError(
            f"block_attention: q, k, v are on {q.device}, {k.device}, {v.device}, the layout on "
            f"{layout.sample.device}; move the layout with layout.to(...)"
        )
