"""Linear layers with weights packed once for CPU matrix products, for loops that call them often.

A plain fp32 product packs its weights in every call, which with few rows costs as much as the product itself. oneDNN
(part of PyTorch's CPU builds) keeps the packed form; its products add in another order. Otherwise (GPU, half
precision, a build without oneDNN) layers are unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.common.layers import ACTIVATIONS, GatedMlp, Mlp

LIMIT = 2**32
"""Modules with more bytes of parameters stay unpacked: the packed form is a second copy during sampling."""

LEAST = 2**19
"""Smaller weights stay unpacked: the overhead of a oneDNN call would exceed the gain."""


def pays(weight: Tensor) -> bool:
    """Whether this weight [out, in] can be packed and is large enough to benefit."""
    return weight.numel() >= LEAST and can_pack(weight)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN is available and has a packed form for this weight [out, in]."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    backend: Any = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled and _has_operators())


def _has_operators() -> bool:
    """The operators that PyTorch's compiler emits for frozen weights; they have no public name."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedLinear(nn.Module):
    """x [..., I] -> x W^T + b [..., O] with a packed copy of W [O, I]; for inference only, as W must not change."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight: Tensor = weight.detach()
        self.bias: Tensor | None = None if bias is None else bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """[..., in] -> [..., out]; `activation`, in the same pass: none, gelu (exact), gelu_tanh or swish (SiLU)."""
        algorithms = {"gelu": "none", "gelu_tanh": "tanh"}
        return torch.ops.mkldnn._linear_pointwise(
            x,
            self._packed,
            self.bias,
            activation.removesuffix("_tanh"),
            [],
            algorithms.get(activation, ""),
        )

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The result multiplied by `other` [..., O]."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "mul")


_FUSED = {ACTIVATIONS["gelu"]: "gelu", ACTIVATIONS["gelu_new"]: "gelu_tanh"}
"""Activations that a packed layer computes in the same pass."""


class PackedMlp(nn.Module):
    """Two linear layers with a GELU between them, packed."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.activation = _FUSED[mlp.activation]
        self.fc1, self.fc2 = (PackedLinear(part.weight, part.bias) for part in (mlp.fc1, mlp.fc2))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(self.fc1(x, self.activation))


class PackedGatedMlp(nn.Module):
    """A gated MLP: down(SiLU(gate x) * up x), packed."""

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
    """A layer for inference with weight [out, in] and bias [out], packed if possible."""
    if pays(weight):
        return PackedLinear(weight, bias)
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU (exact) of the layer's result [..., out], fused if the layer is packed."""
    if isinstance(layer, PackedLinear):
        return layer(x, "gelu")
    return F.gelu(layer(x))


def silu(layer: nn.Module, x: Tensor) -> Tensor:
    """SiLU of the layer's result [..., out], fused if the layer is packed."""
    if isinstance(layer, PackedLinear):
        return layer(x, "swish")
    return F.silu(layer(x))


def packed(module: nn.Module, leave: Collection[str] = ()) -> nn.Module:
    """A copy of the module with packed linear layers; everything else, and children named in `leave`, is shared.

    The copy uses the current weights. Modules that cannot be packed are returned unchanged.
    """
    if _is_gated(module) and pays(module.get_submodule("up_proj").weight):  # type: ignore[arg-type]
        return PackedGatedMlp(module)
    if isinstance(module, Mlp) and module.activation in _FUSED and pays(module.fc1.weight):
        return PackedMlp(module)
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, module.bias) if pays(module.weight) else module
    if not module._modules:
        return module
    copied = copy.copy(module)
    copied.__dict__["_modules"] = {
        name: child if child is None or name in leave else packed(child, leave)
        for name, child in module._modules.items()
    }
    return copied


def size(module: nn.Module) -> int:
    """Size of the module's parameters in bytes."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def within_limit(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Packed copies of the first layers, as many as stay below `LIMIT` together; the others unchanged."""
    room, result = LIMIT, []
    for layer in layers:
        room -= size(layer)
        result.append(packed(layer) if room >= 0 else layer)
    return result


def exchanged(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """A copy of the module with `part` in place of the submodule at `path`; everything else is shared."""
    name, _, rest = path.partition(".")
    copied = copy.copy(module)
    inner = exchanged(module.get_submodule(name), rest, part) if rest else part
    copied.__dict__["_modules"] = {**module._modules, name: inner}
    return copied


def _is_gated(module: nn.Module) -> bool:
    """Whether it is our gated MLP or that of transformers' Llama, with SiLU."""
    if isinstance(module, GatedMlp):
        return True
    names = {name for name, _ in module.named_children()}
    return {"gate_proj", "up_proj", "down_proj"} <= names and (
        getattr(getattr(module, "config", None), "hidden_act", "") == "silu"
    )
