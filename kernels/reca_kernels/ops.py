"""The public functions: they check their inputs and call the implementation chosen by dispatch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reca_kernels import library, tuning
from reca_kernels.dispatch import Implementation, chosen
from reca_kernels.inputs import autocast, check_linear, check_reduction, needed
from reca_kernels.layout import Layout
from reca_kernels.operators import attention as attention_operator
from reca_kernels.operators import cross_entropy as cross_entropy_operator
from reca_kernels.operators import flow as flow_operator

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
    or int32). `vocab` = (start, stop) restricts the softmax to these ids (None: all); targets are absolute
    ids in start..stop-1, or `ignore_index`: such a row has no loss and costs no computation. The loss is
    fp32 (fp64 for fp64 inputs): "none" returns [...] with 0 in ignored rows, "sum" their sum, "mean" the
    sum divided by the number of rows with a target; without any such row, loss and gradients are 0
    (`F.cross_entropy` returns nan). Label smoothing is that of `F.cross_entropy` over the slice.
    Gradients flow to hidden, weight and bias; there is no second derivative. ValueError for a target
    outside the slice and for incompatible shapes, dtypes or devices. `all_valid`: the caller guarantees
    that every target is in the slice, so their values are not checked, which would synchronise the device.
    """
    _check_targets(hidden, weight, targets, bias, vocab, label_smoothing)
    check_reduction(reduction)
    hidden, weight = autocast(hidden), autocast(weight)
    bias = None if bias is None else autocast(bias)
    start, stop = vocab or (0, weight.shape[0])
    which = chosen("linear_cross_entropy", implementation, hidden.device, hidden.dtype)
    loss, *_ = cross_entropy_operator.linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, targets.reshape(-1).long(),
        None if all_valid else ignore_index, start, stop, float(label_smoothing), reduction, which,
        needed(hidden, weight, bias),
    )  # fmt: skip
    return loss.view(targets.shape) if reduction == "none" else loss


def _check_targets(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab: tuple[int, int] | None,
    label_smoothing: float,
) -> None:
    """Raise ValueError for shapes, types and limits that do not fit; values are checked where they are read."""
    check_linear("linear_cross_entropy", hidden, weight, bias)
    if targets.shape != hidden.shape[:-1] or targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"linear_cross_entropy: targets must be int64 {list(hidden.shape[:-1])}, one id per row "
            f"of hidden, not {targets.dtype} {list(targets.shape)}"
        )
    start, stop = vocab or (0, weight.shape[0])
    if not 0 <= start < stop <= weight.shape[0]:
        raise ValueError(
            f"linear_cross_entropy: vocab ({start}, {stop}) is not within 0..{weight.shape[0]}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"linear_cross_entropy: label_smoothing {label_smoothing} is not in 0..1")


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
    """Squared error between the velocity `hidden @ weight.T + bias` and its target `noise - clean`.

    `hidden` [..., D], `weight` [C, D], `bias` [C] or None, `clean` and `noise` [..., C] (data: no
    gradient flows to them), `mask` bool [...] selects the rows with a loss (None: all). A row's loss is
    the mean over its C channels, fp32 (fp64 for fp64 inputs): "none" returns [...] with 0 outside the
    mask, "sum" their sum, "mean" the sum divided by the number of rows; without rows, loss and gradients
    are 0. For noise prediction (target `noise`) pass zeros as `clean`. Gradients flow to hidden, weight
    and bias; there is no second derivative. ValueError for incompatible shapes, dtypes or devices.
    """
    _check_data(hidden, weight, bias, clean, noise, mask)
    check_reduction(reduction)
    hidden, weight = autocast(hidden), autocast(weight)
    bias = None if bias is None else autocast(bias)
    obstacle = None
    if weight.shape[0] > tuning.MOST_CHANNELS:
        obstacle = f"{weight.shape[0]} channels are more than {tuning.MOST_CHANNELS}"
    which = chosen("flow_matching_loss", implementation, hidden.device, hidden.dtype, obstacle)
    flat, *data = (t.reshape(-1, t.shape[-1]) for t in (hidden, clean, noise))
    loss, *_ = flow_operator.flow_matching_loss(
        flat, weight, bias, *data, None if mask is None else mask.reshape(-1), reduction, which,
        needed(hidden, weight, bias),
    )  # fmt: skip
    return loss.view(hidden.shape[:-1]) if reduction == "none" else loss


def _check_data(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
) -> None:
    """Raise ValueError unless clean, noise [..., C] and mask [...] fit hidden [..., D], and are data."""
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
                f"flow_matching_loss: {name} requires grad, but no gradient flows to it; detach it"
            )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != hidden.shape[:-1]):
        raise ValueError(
            f"flow_matching_loss: mask must be bool {list(hidden.shape[:-1])}, "
            f"not {mask.dtype} {list(mask.shape)}"
        )


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Softmax attention output [Q, H, E] of packed queries over the keys that `layout` lets each see.

    `q` [Q, H, E] (Q = T unless the layout restricts the queries), `k` and `v` [T, K, E] with H a multiple of
    K (grouped queries: head h reads key head h // (H / K)). `scale` defaults to 1 / sqrt(E). A query
    without a visible key outputs 0 and has no gradient. Gradients flow to q, k and v; there is no second
    derivative. Under autocast q, k and v may differ in dtype and are cast to autocast's, as in
    `scaled_dot_product_attention`. ValueError for incompatible shapes, dtypes or devices.
    """
    q, k, v = autocast(q), autocast(k), autocast(v)
    _check_heads(q, k, v, layout)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    obstacle = None
    if q.shape[-1] > tuning.WIDEST_HEAD:
        obstacle = f"heads of {q.shape[-1]} are wider than {tuning.WIDEST_HEAD}"
    which = chosen("block_attention", implementation, q.device, q.dtype, obstacle)
    if which == "torch" and not torch.compiler.is_compiling():  # its calls have their own gradients
        return library.by_intervals(q, k, v, layout, scale)
    return attention_operator.attended(q, k, v, layout, scale, which)


def _check_heads(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
    """Raise ValueError unless q [Q, H, E], k and v [T, K, E] match each other and the layout."""
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
            f"block_attention: {q.shape[1]} heads are not a multiple of {k.shape[1]} key heads"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not q.dtype.is_floating_point:
        raise ValueError(
            f"block_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; use one floating-point dtype"
        )
    if len({q.device, k.device, v.device, layout.sample.device}) > 1:
        raise ValueError(
            f"block_attention: q, k, v are on {q.device}, {k.device}, {v.device}, the layout on "
            f"{layout.sample.device}; move the layout with layout.to(...)"
        )
