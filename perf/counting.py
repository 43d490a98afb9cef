"""Counts what a computation dispatches: operations, and the floating point operations of its products."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def _product(x: Any, weight: Any) -> int:
    return 2 * int(np.prod(x.shape)) * int(weight.shape[0])


def _attention(q: Any, k: Any) -> int:
    return 4 * int(np.prod(q.shape)) * int(k.shape[-2])


class Dispatched(TorchDispatchMode):
    """Counts operations, except views, and the flops of matrix products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.flops = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name == "mkldnn._linear_pointwise.default":
            self.flops += _product(args[0], args[1])
        elif name == "mkldnn._linear_pointwise.binary":
            self.flops += _product(args[0], args[2])
        elif "scaled_dot_product" in name and "backward" in name:
            # five products for the two of the forward pass
            self.flops += _attention(args[1], args[2]) * 5 // 2
        elif "scaled_dot_product" in name:
            self.flops += _attention(args[0], args[1])
        elif counted := flop_registry.get(func.overloadpacket):
            self.flops += int(counted(*args, **(kwargs or {}), out_val=result))
        return result
