"""Layers of the families' transformers, under transformers' parameter names.

They are written out here because importing a model class of transformers takes three seconds: it loads its
integrations, torch's compiler and scipy. Results and initial weights are those of transformers' classes
(tests/models/test_transformers.py). Letters: D width, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation, [...] -> [...]."""
    return x * torch.sigmoid(1.702 * x)


_tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,  # transformers computes the same function in eight operations
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""Activation functions by their names in configurations of transformers."""


def check_activation(where: str, name: str) -> None:
    """ValueError unless `name`, given at `where` in a configuration, is a known activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{where} is {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")


class RMSNorm(nn.Module):
    """Division by the root mean square of the last axis, computed in fp32, and a learned scale."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        exact = x.to(torch.float32)
        variance = exact.pow(2).mean(-1, keepdim=True)
        exact = exact * torch.rsqrt(variance + self.epsilon)
        return self.weight * exact.to(x.dtype)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, inner: int, hidden_act: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[hidden_act]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nn.Module):
    """SwiGLU: down(SiLU(gate x) * up x), without biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Sample linear weights and embeddings from N(0, std^2), in transformers' order, and set biases to zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
