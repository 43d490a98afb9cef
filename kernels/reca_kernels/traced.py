"""What only a traced graph needs, and what loads the compiler's modules: imported when the first graph is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from reca_kernels.operators.operation import Operation

Result = TypeVar("Result")
# torch refers to the definitions weakly
_REGISTERED: dict[str, tuple[Any, Any]] = {}


@torch.compiler.assume_constant_result
def constant(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`, run while the graph is traced, and a constant of it.

    The arguments are text, numbers, devices and types: torch 2.11 refuses frozen dataclasses there.
    """
    return function(*arguments)


def registered(operation: Operation) -> str:
    """Register an operation and its gradients with torch, once; its name under `torch.ops.reca_kernels`."""
    name = operation.name
    if name not in _REGISTERED:
        forward = torch.library.custom_op(
            f"reca_kernels::{name}", operation.forward, mutates_args=()
        )
        gradients = torch.library.custom_op(
            f"reca_kernels::{name}_gradients", operation.gradients, mutates_args=()
        )
        forward.register_fake(operation.shapes)
        gradients.register_fake(operation.gradient_shapes)
        forward.register_autograd(
            lambda ctx, *incoming: operation.differentiate(ctx, gradients, *incoming),
            setup_context=lambda ctx, inputs, output: operation.remember(ctx, inputs, output),
        )
        _REGISTERED[name] = forward, gradients
    return name
