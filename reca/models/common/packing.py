"""Linear layers whose weights are laid out once for the CPU's matrix products, for loops that call them often.

A plain fp32 product packs its weights in every call, which costs as much as a product with few rows itself. oneDNN
(part of PyTorch's CPU builds) keeps the packed form; its products give the same sums in another order. Elsewhere
(GPU, half precision, a build without oneDNN) layers stay what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 2**32
"""Parts with more bytes of parameters stay unpacked: the packed form is a second copy while a batch is drawn."""

LEAST = 2**19
"""Smaller weights stay unpacked: a call of oneDNN costs more than a plain one, which they do not win back."""


def pays(weight: Tensor) -> bool:
    """Whether this weight [out, in] can be packed and is large enough to gain by it."""
    return weight.numel() >= LEAST and can_pack(weight)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN is there and has a packed form for this weight [out, in]."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    found: Any = torch.backends.mkldnn
    return bool(found.is_available() and found.enabled and _has_operators())


def _has_operators() -> bool:
    """The operators are those that PyTorch's own compiler emits for frozen weights; they have no public name."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedLinear(nn.Module):
    """x [..., I] -> x W^T + b [..., O] by a packed copy of W [O, I]; for inference only, W must not change."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight: Tensor = weight.detach()
        self.bias: Tensor | None = None if bias is None else bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """[..., in] -> [..., out]; `activation`, in the same pass: none, gelu (exact) or swish (SiLU)."""
        return torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, activation, [], "none" if activation == "gelu" else ""
        )

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The result multiplied by `other` [..., O]."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "mul")


class PackedGatedMlp(nn.Module):
    """The MLP of Llama and Qwen2: down(SiLU(gate x) * (up x)), packed."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            PackedLinear(layer.weight, layer.bias)
            for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down(self.up.times(x, self.gate(x, "swish")))


def linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | nn.Linear:
    """A layer for inference with weight [out, in] and bias [out], packed where that is possible."""
    if pays(weight):
        return PackedLinear(weight, bias)
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU (exact) of the layer's result [..., out], in one go where it is packed."""
    if isinstance(layer, PackedLinear):
        return layer(x, "gelu")
    return F.gelu(layer(x))


def silu(layer: nn.Module, x: Tensor) -> Tensor:
    """SiLU of the layer's result [..., out], in one go where it is packed."""
    if isinstance(layer, PackedLinear):
        return layer(x, "swish")
    return F.silu(layer(x))


def packed(module: nn.Module, leave: Collection[str] = ()) -> nn.Module:
    """A twin of the module that shares all with it but has packed linear layers; children named in `leave` are shared.

    The twin sees weights as they are now. Modules that cannot be packed come back as they are.
    """
    if _is_gated(module) and pays(module.get_submodule("up_proj").weight):  # type: ignore[arg-type]
        return PackedGatedMlp(module)
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, module.bias) if pays(module.weight) else module
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {
        name: child if child is None or name in leave else packed(child, leave)
        for name, child in module._modules.items()
    }
    return twin


def size(module: nn.Module) -> int:
    """Bytes of the module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def within_limit(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Twins of the first layers, as many as stay below `LIMIT` together; the others as they are."""
    room, found = LIMIT, []
    for layer in layers:
        room -= size(layer)
        found.append(packed(layer) if room >= 0 else layer)
    return found


def _is_gated(module: nn.Module) -> bool:
    """Whether it is an MLP of transformers' Llama or Qwen2 with SiLU."""
    names = {name for name, _ in module.named_children()}
    return {"gate_proj", "up_proj", "down_proj"} <= names and (
        getattr(getattr(module, "config", None), "hidden_act", "") == "silu"
    )
