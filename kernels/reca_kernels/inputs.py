"""Input checks and conversions shared by the losses."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_linear(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless hidden [..., D], weight [C, D] and bias [C] are compatible."""
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}: hidden {list(hidden.shape)} does not fit weight {list(weight.shape)}; "
            "give hidden [..., D] and weight [C, D]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias {list(bias.shape)} must be [{weight.shape[0]}]")
    together = [hidden, weight] if bias is None else [hidden, weight, bias]
    if len({t.device for t in together}) > 1:
        raise ValueError(
            f"{name}: hidden, weight and bias are on different devices; move them to one"
        )
    if hidden.dtype not in FLOATS or (
        len({t.dtype for t in together}) > 1 and not torch.is_autocast_enabled(hidden.device.type)
    ):
        raise ValueError(
            f"{name}: hidden, weight and bias must have one floating-point dtype, not "
            f"{', '.join(str(t.dtype) for t in together)}; cast them or use autocast"
        )


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; choose one of: mean, sum, none")


def autocast(tensor: Tensor) -> Tensor:
    """Cast the tensor [...] to autocast's dtype if autocast is on, as `F.linear` does."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def needed(*tensors: Tensor | None) -> list[bool]:
    """Which of the tensors a gradient will be asked for: none under `no_grad`, whatever they require."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]


def dense_rows(matrix: Tensor) -> Tensor:
    """The matrix [M, K] with a dense last dimension, as the kernels require; copied only if necessary."""
    return matrix if matrix.stride(-1) == 1 and matrix.stride(0) >= 0 else matrix.contiguous()
