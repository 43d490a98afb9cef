"""One function with gradients of its own, in both of torch's forms.

Eager code runs it as an autograd function. In a traced graph (`torch.compile`, fake tensors) it is one opaque operator:
what depends on values (which rows carry a loss, which tiles a mask needs) happens inside, and outputs have sizes that
depend on the sizes of inputs only. The operator is registered with the first such graph, since that loads the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Gradients = tuple[Tensor | None, ...]
# every operation by its name: what crosses into a graph that is traced must be text, numbers or tensors
OPERATIONS: dict[str, Operation] = {}
NO_GRADIENTS: Gradients = (None, None, None)


@dataclass(frozen=True)
class Operation:
    """A function of tensors and options whose first output is its result; the others are for its gradients.

    `gradients` takes the incoming gradient and what `backward` passes on; `shapes` and `gradient_shapes` give outputs
    without values. `save(ctx, inputs, outputs)` prepares `backward(ctx, gradients, incoming)`, which returns one
    gradient per input.
    """

    name: str
    forward: Callable[..., tuple[Tensor, ...]]
    gradients: Callable[..., tuple[Tensor, ...]]
    shapes: Callable[..., Any]
    gradient_shapes: Callable[..., Any]
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None]
    backward: Callable[[Any, Callable[..., tuple[Tensor, ...]], Tensor], tuple[Any, ...]]

    def __post_init__(self) -> None:
        OPERATIONS[self.name] = self

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The outputs; an implementation is among the arguments."""
        if not _traced(arguments):
            return self._eager.apply(*arguments)
        from reca_kernels import traced

        # by its name: torch 2.11 makes no constant of a frozen dataclass, which this operation is
        name = traced.constant(_registered, self.name)
        return getattr(torch.ops.reca_kernels, name)(*arguments)

    def remember(self, ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        """Prepare the backward pass."""
        ctx.set_materialize_grads(False)  # zeros of the size of the weights, else
        ctx.mark_non_differentiable(*outputs[1:])
        self.save(ctx, inputs, outputs)

    def differentiate(
        self,
        ctx: Any,
        gradients: Callable[..., tuple[Tensor, ...]],
        incoming: Tensor | None,
        *_: Tensor | None,
    ) -> tuple[Any, ...]:
        """Gradients of the inputs, by `gradients`: this operation's own, or the operator made of it."""
        if incoming is None:
            return (None,) * len(ctx.needs_input_grad)
        return self.backward(ctx, gradients, incoming)

    @cached_property
    def _eager(self) -> Any:
        operation = self

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
                outputs = operation.forward(*arguments)
                operation.remember(ctx, arguments, outputs)
                return outputs

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
                return operation.differentiate(ctx, operation.gradients, *incoming)

        return Eager


def _registered(name: str) -> str:
    from reca_kernels import traced

    return traced.registered(OPERATIONS[name])


def _traced(arguments: Sequence[Any]) -> bool:
    """Whether a graph is being traced, or tensors have no values."""
    if torch.compiler.is_compiling():
        return True
    return any(isinstance(one, FakeTensor) for one in arguments)


# ---- shared by the losses ----------------------------------------------------------------------------
def given(gradients: Gradients, near: Tensor) -> list[Tensor]:
    """The gradients, with an empty tensor for one that is not needed: an operator returns tensors only."""
    return [near.new_empty(0) if one is None else one for one in gradients]


def wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    """The gradients that are needed, None for the others."""
    return tuple(one if need else None for one, need in zip(gradients, needs, strict=True))


def rows_of(valid: Tensor, count: int) -> Tensor | None:
    """Indices of the `count` true elements of `valid` [N], None for all; the host does not wait for the device."""
    if count == len(valid):
        return None
    if not on_gpu(valid):
        return valid.nonzero().squeeze(1)
    return valid.byte().argsort(descending=True, stable=True)[:count]


def on_gpu(tensor: Tensor) -> bool:
    """Whether a count of its elements is a wait for a device."""
    return tensor.is_cuda


def row_losses(losses: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Losses [M] of `rows` as [N], 0 elsewhere."""
    return losses if rows is None else losses.new_zeros(count).index_copy_(0, rows, losses)


def average(count: int, reduction: str) -> float:
    """The factor of a sum over `count` rows."""
    return 1 / max(count, 1) if reduction == "mean" else 1.0


def fake_count(near: Tensor, counted: bool) -> Tensor:
    """The shape of a number of rows: in main memory, or empty where all rows count."""
    if counted:
        return torch.empty((), dtype=torch.int64, device="cpu")
    return near.new_empty(0, dtype=torch.int64)


def fake_gradients(hidden: Tensor, weight: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    """The shapes of the gradients of hidden, weight and bias; empty ones where none is needed."""
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return [
        hidden.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    ]


class Kept:
    """A scalar loss' gradients between its passes: scaled in place once, made again if they are asked for again."""

    def __init__(self, gradients: Sequence[Tensor], needs: Sequence[bool]) -> None:
        # without their own history, which would hold this object in turn
        self._gradients = wanted([one.detach() for one in gradients], needs)
        self._ready = True

    def taken(
        self, incoming: Tensor, scale_: Callable[[Tensor, Tensor], object] = torch.Tensor.mul_
    ) -> Gradients | None:
        """The gradients times `incoming` [], by `scale_` in place; None the second time."""
        if not self._ready:
            return None
        gradients, self._gradients, self._ready = self._gradients, (), False
        for one in gradients:
            if one is not None:
                scale_(one, incoming)
        return gradients
