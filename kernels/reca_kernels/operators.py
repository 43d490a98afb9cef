"""The losses and the attention as operators of torch: with gradients, and with shapes for graphs that are traced.

`torch.compile` and FSDP see one opaque operator per call; what depends on values (which rows carry a loss, which
tiles a mask needs) happens inside. Outputs have sizes that depend on the inputs' sizes only. An operator runs the
implementation that it is told, `triton` or `torch`; `ops.py` checks inputs and chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reca_kernels import attention, cross_entropy, flow
from reca_kernels.inputs import dense_rows
from reca_kernels.layout import Layout, layout_of

Gradients = tuple[Tensor | None, ...]
_NONE: Gradients = (None, None, None)


def _given(gradients: Gradients, near: Tensor) -> list[Tensor]:
    """The gradients, with an empty tensor for one that is not needed: an operator returns tensors only."""
    return [near.new_empty(0) if one is None else one for one in gradients]


def _wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    return tuple(one if need else None for one, need in zip(gradients, needs, strict=True))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _rows(valid: Tensor, count: int) -> Tensor | None:
    """Indices of the `count` true elements of `valid` [N], None for all; the host does not wait for the device."""
    if count == len(valid):
        return None
    if not _on_gpu(valid):
        return valid.nonzero().squeeze(1)
    return valid.byte().argsort(descending=True, stable=True)[:count]


def _by_row(losses: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Losses [M] of `rows` as [N], 0 elsewhere."""
    return losses if rows is None else losses.new_zeros(count).index_copy_(0, rows, losses)


def _average(count: int, reduction: str) -> float:
    return 1 / max(count, 1) if reduction == "mean" else 1.0


class _Kept:
    """A scalar loss' gradients between its passes: scaled in place once, made again if they are asked for again."""

    def __init__(self, gradients: Sequence[Tensor], needs: Sequence[bool]) -> None:
        # without their own history, which would hold this object in turn
        self._gradients = _wanted([one.detach() for one in gradients], needs)
        self._ready = True

    def taken(self, incoming: Tensor) -> Gradients | None:
        """The gradients times `incoming` []; None the second time."""
        if not self._ready:
            return None
        gradients, self._gradients, self._ready = self._gradients, (), False
        for one in gradients:
            if one is not None:
                one.mul_(incoming)
        return gradients


def _register(
    operator: Any, setup: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # zeros of the size of the weights, else
        ctx.mark_non_differentiable(*output[1:])
        setup(ctx, inputs, output)

    def checked(ctx: Any, incoming: Tensor | None, *_: Any) -> tuple[Any, ...]:
        return (None,) * len(ctx.needs_input_grad) if incoming is None else backward(ctx, incoming)

    operator.register_autograd(checked, setup_context=setup_context)


# ---- linear cross-entropy ------------------------------------------------------------------------
@torch.library.custom_op("reca_kernels::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int | None,
    start: int,
    stop: int,
    smoothing: float,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [] or losses [N] of hidden [N, D] against targets [N]; log-sum-exp [N], number of rows, gradients.

    A scalar loss gives the gradients of hidden, weight and bias that `needs` names at once, else they are empty.
    Without an `ignore_index` the values of the targets are not checked; else this is the one wait for the device.
    """
    rows, aims, count = _targets(targets, ignore_index, start, stop)
    scale, scalar, vocab = _average(len(aims), reduction), reduction != "none", (start, stop)
    now = list(needs) if scalar else [False] * 3
    lse = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    gradients: Gradients | None
    if implementation == "torch":
        losses, gradients = cross_entropy.chunked(
            hidden, weight, bias, rows, aims, vocab, smoothing, None, now, scale
        )
    else:
        hidden, weight = dense_rows(hidden), dense_rows(weight)
        bias = None if bias is None else bias.contiguous()
        arguments = (hidden, weight, bias, rows, aims, vocab, smoothing)
        if any(now):
            losses, gradients = cross_entropy.fused(*arguments, now, scale)
        else:
            lse[: len(aims)], losses = cross_entropy.log_sums(*arguments)
            gradients = _NONE
    loss = losses.sum() * scale if scalar else _by_row(losses, rows, len(targets))
    hidden_gradient, weight_gradient, bias_gradient = _given(gradients or _NONE, hidden)
    return loss, lse, count, hidden_gradient, weight_gradient, bias_gradient


def _targets(
    targets: Tensor, ignore_index: int | None, start: int, stop: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Rows [M] with a loss (None: all), their targets [M] from `start` on, and M in main memory (empty: all)."""
    if ignore_index is None:
        return None, targets - start, targets.new_empty(0)
    valid = targets != ignore_index
    outside = valid & ((targets < start) | (targets >= stop))
    count, wrong = torch.stack([valid.sum(), outside.sum()]).tolist()
    if wrong:
        raise ValueError(
            f"linear_cross_entropy: target {int(targets[outside][0])} is outside {start}..{stop - 1}; "
            f"give absolute ids of the slice, or ignore_index {ignore_index} for rows without a loss"
        )
    rows = _rows(valid, count)
    aims = (targets if rows is None else targets[rows]) - start
    return rows, aims, torch.tensor(count, device="cpu")


@linear_cross_entropy.register_fake
def _(
    hidden, weight, bias, targets, ignore_index, start, stop, smoothing, reduction, implementation,
    needs,
):  # fmt: skip
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty(targets.shape if reduction == "none" else (), dtype=wide)
    now = list(needs) if reduction != "none" else [False] * 3
    return (
        loss,
        hidden.new_empty(targets.shape, dtype=torch.float32),
        _fake_count(targets, ignore_index is not None),
        *_like(hidden, weight, bias, now),
    )


def _fake_count(near: Tensor, counted: bool) -> Tensor:
    if counted:
        return torch.empty((), dtype=torch.int64, device="cpu")
    return near.new_empty(0, dtype=torch.int64)


def _like(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> list[Tensor]:
    """Outputs of the shapes of hidden, weight and bias; empty ones where no gradient is needed."""
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return [
        hidden.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    ]


@torch.library.custom_op("reca_kernels::linear_cross_entropy_gradients", mutates_args=())
def linear_cross_entropy_gradients(
    incoming: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    count: Tensor,
    ignore_index: int | None,
    start: int,
    stop: int,
    smoothing: float,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [N, D], weight and bias for `incoming`, [] or [N]; empty where `needs` is false."""
    rows = None if ignore_index is None else _rows(targets != ignore_index, int(count))
    aims, vocab = (targets if rows is None else targets[rows]) - start, (start, stop)
    scale, scalar = _average(len(aims), reduction), reduction != "none"
    by_row = None if scalar else (incoming if rows is None else incoming[rows])
    if implementation == "torch":
        _, gradients = cross_entropy.chunked(
            hidden, weight, bias, rows, aims, vocab, smoothing, by_row, needs, scale
        )
        gradients = gradients or _NONE
        if scalar:
            gradients = tuple(None if one is None else one.mul_(incoming) for one in gradients)
    else:
        hidden, weight = dense_rows(hidden), dense_rows(weight)
        bias = None if bias is None else bias.contiguous()
        factor = torch.full((1,), scale, dtype=torch.float32, device=incoming.device)
        if scalar:
            factor = factor * incoming.float()
            lse, _ = cross_entropy.log_sums(hidden, weight, bias, rows, aims, vocab, smoothing)
        by_row = None if by_row is None else by_row.float().contiguous()
        gradients = cross_entropy.slabs(
            hidden,
            weight,
            bias,
            rows,
            aims,
            lse[: len(aims)],
            vocab,
            smoothing,
            by_row,
            factor,
            needs,
        )
    hidden_gradient, weight_gradient, bias_gradient = _given(gradients, hidden)
    return hidden_gradient, weight_gradient, bias_gradient


@linear_cross_entropy_gradients.register_fake
def _(
    incoming, hidden, weight, bias, targets, lse, count, ignore_index, start, stop, smoothing,
    reduction, implementation, needs,
):  # fmt: skip
    return tuple(_like(hidden, weight, bias, needs))


def _cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, *ctx.options, ctx.needs = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, output[1], output[2])
    ctx.kept = _Kept(output[3:], ctx.needs) if ctx.options[4] != "none" else None


def _cross_entropy_backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
    gradients = ctx.kept.taken(incoming) if ctx.kept else None
    if gradients is None:
        made = linear_cross_entropy_gradients(
            incoming, *ctx.saved_tensors, *ctx.options, list(ctx.needs)
        )
        gradients = _wanted(made, ctx.needs)
    return (*gradients, *[None] * 8)


_register(linear_cross_entropy, _cross_entropy_setup, _cross_entropy_backward)


# ---- flow matching -------------------------------------------------------------------------------
@torch.library.custom_op("reca_kernels::flow_matching_loss", mutates_args=())
def flow_matching_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [] or losses [N] of hidden [N, D]; kept derivatives [N, C], number of rows, gradients.

    Triton keeps the derivatives by the velocities if any gradient is needed; torch gives the gradients of hidden,
    weight and bias that `needs` names at once for a scalar loss. What is not given is empty. A mask is the one wait.
    """
    count = hidden.new_empty(0, dtype=torch.int64)
    rows = None
    if mask is not None:
        number = int(mask.sum())
        rows, count = _rows(mask, number), torch.tensor(number, device="cpu")
    scalar = reduction != "none"
    scale = _average(len(hidden) if mask is None else int(count), reduction)
    kept, gradients = hidden.new_empty(0, len(weight)), _NONE
    if implementation == "torch":
        now = list(needs) if scalar else [False] * 3
        losses, gradients = flow.chunked(hidden, weight, bias, clean, noise, rows, None, now, scale)
    else:
        hidden, weight, clean, noise = (dense_rows(t) for t in (hidden, weight, clean, noise))
        bias = None if bias is None else bias.contiguous()
        losses, kept = flow.tiled(hidden, weight, bias, clean, noise, rows, any(needs))
    loss = losses.sum() * scale if scalar else _by_row(losses, rows, len(hidden))
    hidden_gradient, weight_gradient, bias_gradient = _given(gradients, hidden)
    return loss, kept, count, hidden_gradient, weight_gradient, bias_gradient


@flow_matching_loss.register_fake
def _(hidden, weight, bias, clean, noise, mask, reduction, implementation, needs):
    scalar = reduction != "none"
    wide = torch.promote_types(hidden.dtype, torch.float32)
    keep = implementation != "torch" and any(needs)
    now = list(needs) if scalar and implementation == "torch" else [False] * 3
    return (
        hidden.new_empty(() if scalar else hidden.shape[:1], dtype=wide),
        hidden.new_empty(hidden.shape[0] if keep else 0, weight.shape[0]),
        _fake_count(hidden, mask is not None),
        *_like(hidden, weight, bias, now),
    )


@torch.library.custom_op("reca_kernels::flow_matching_loss_gradients", mutates_args=())
def flow_matching_loss_gradients(
    incoming: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    kept: Tensor,
    count: Tensor,
    reduction: str,
    implementation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [N, D], weight [C, D] and bias [C] for `incoming`, [] or [N]."""
    rows = None if mask is None else _rows(mask, int(count))
    scalar = reduction != "none"
    scale = _average(len(hidden) if mask is None else int(count), reduction)
    if implementation == "torch":
        by_row = None if scalar else (incoming if rows is None else incoming[rows])
        _, gradients = flow.chunked(hidden, weight, bias, clean, noise, rows, by_row, needs, scale)
        if scalar:
            gradients = tuple(None if one is None else one.mul_(incoming) for one in gradients)
    else:
        kept = kept * (incoming if scalar else incoming.unsqueeze(1))
        gradients = flow.products(kept.to(hidden.dtype), hidden, weight, rows, needs, scale)
    hidden_gradient, weight_gradient, bias_gradient = _given(gradients, hidden)
    return hidden_gradient, weight_gradient, bias_gradient


@flow_matching_loss_gradients.register_fake
def _(
    incoming, hidden, weight, bias, clean, noise, mask, kept, count, reduction, implementation,
    needs,
):  # fmt: skip
    return tuple(_like(hidden, weight, bias, needs))


def _flow_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reduction, ctx.implementation, ctx.needs = inputs
    ctx.save_for_backward(*tensors, output[1], output[2])
    made = ctx.implementation == "torch" and ctx.reduction != "none"
    ctx.kept = _Kept(output[3:], ctx.needs) if made else None


def _flow_backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
    gradients = ctx.kept.taken(incoming) if ctx.kept else None
    if gradients is None:
        made = flow_matching_loss_gradients(
            incoming, *ctx.saved_tensors, ctx.reduction, ctx.implementation, list(ctx.needs)
        )
        gradients = _wanted(made, ctx.needs)
    return (*gradients, *[None] * 6)


_register(flow_matching_loss, _flow_setup, _flow_backward)


# ---- attention -----------------------------------------------------------------------------------
@torch.library.custom_op("reca_kernels::block_attention", mutates_args=())
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sample: Tensor,
    tag: Tensor,
    positions: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Outputs [Q, H, E] under the layout of `sample`, `tag` [T] and `positions` [Q], and log-sum-exps [H, Q]."""
    layout = layout_of(sample, tag, positions)
    if implementation == "torch":
        out = attention.by_intervals(q, k, v, layout, scale)
        return out.contiguous(), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return attention.tiled(q, k, v, layout, scale)


@block_attention.register_fake
def _(q, k, v, sample, tag, positions, scale, implementation):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("reca_kernels::block_attention_gradients", mutates_args=())
def block_attention_gradients(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sample: Tensor,
    tag: Tensor,
    positions: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [Q, H, E], k and v [T, K, E]."""
    layout = layout_of(sample, tag, positions)
    if implementation == "torch":
        return attention.interval_gradients(q, k, v, d_out, layout, scale)
    return attention.tiled_gradients(d_out, q, k, v, out, lse, layout, scale)


@block_attention_gradients.register_fake
def _(d_out, q, k, v, out, lse, sample, tag, positions, scale, implementation):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.implementation = inputs
    q, k, v, *tokens = tensors
    ctx.save_for_backward(q, k, v, *output, *tokens)
    ctx.layout = layout_of(*tokens, known=True)  # alive until backward, with the lists it keeps


def _attention_backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    gradients = block_attention_gradients(d_out, *ctx.saved_tensors, ctx.scale, ctx.implementation)
    return (*gradients, *[None] * 5)


_register(block_attention, _attention_setup, _attention_backward)


def attended(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, implementation: str
) -> Tensor:
    """Outputs [Q, H, E] of the operator for q [Q, H, E], k and v [T, K, E]."""
    tokens = (layout.sample, layout.tag, layout.query_positions)
    return block_attention(q, k, v, *tokens, scale, implementation)[0]
