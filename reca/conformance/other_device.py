"""A GPU in name only: its tensors lie in CPU memory and compute there, but refuse to meet those of the CPU.

Catches an input that was never moved and a result that was never brought back, on a machine without a GPU. Values are
real, so code that depends on them (`.item()`, sampling loops) runs as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from reca_kernels import dispatch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor of the other device; `here` is its memory."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> OnDevice:
        """Wrap a tensor of the CPU."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=here.requires_grad,
        )
        made.here = here.detach()
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        strangers = [x for x in tensors if _is_stranger(x)]
        # indices may come from the CPU, and so may what is copied; numbers (0-d) always
        if strangers and func is not torch.ops.aten.copy_.default and not _indexes(func, args):
            raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, found one on cpu")
        if target is not None and torch.device(target).type == DEVICE.type:
            kwargs["device"] = torch.device("cpu")
        given_args, given_kwargs = tree_map(_opened, (args, kwargs))
        found = func(*given_args, **given_kwargs)
        if target is not None and torch.device(target).type == "cpu":
            return found.clone()
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        name = func._schema.name.split("::")[1]
        if name.endswith("_") and not name.startswith("_"):
            return args[0]
        return tree_map(_closed, found)


def _indexes(func: Any, args: Any) -> bool:
    return func is torch.ops.aten.index.Tensor and isinstance(args[0], OnDevice)


def _opened(x: Any) -> Any:
    return x.here if isinstance(x, OnDevice) else x


def _closed(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, torch.Tensor) else x


class GpuInName(TorchFunctionMode):
    """While entered, `device="cuda"` and `.to("cuda")` make such tensors; for code without gradients only.

    What Python's own face of tensors does before it dispatches would ask a real GPU: it is done here.
    """

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as for fake tensors
        self._factories = _Factories()

    def __enter__(self) -> Any:
        self._replaced = [(owner, name, getattr(owner, name)) for owner, name, _ in _REPLACED]
        for owner, name, other in _REPLACED:
            setattr(owner, name, other)
        self._factories.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._factories.__exit__(*raised)
        for owner, name, real in self._replaced:
            setattr(owner, name, real)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _moved(func, args, kwargs)
        if func is torch.Tensor.numpy and isinstance(args[0], OnDevice):
            raise TypeError("can't convert a cuda tensor to numpy; bring it to the CPU first")
        if _is_ours(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
            return _closed(func(*args, **kwargs))
        try:
            return func(*args, **kwargs)
        except RuntimeError as problem:
            if not any(said in str(problem) for said in _ASKS_THE_GPU):
                raise
            return _by_hand(func, args, kwargs)


# What would ask a real GPU. The device has no generator (what is random there comes from the CPU's, so `fork_rng` has
# nothing to keep) and no Triton.
_REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "get_rng_state", lambda device=None: torch.zeros(0, dtype=torch.uint8)),
    (torch.cuda, "set_rng_state", lambda state, device=None: None),
    (dispatch, "automatic", lambda kernel, index: ("torch", "the device is one in name only")),
)
_ASKS_THE_GPU = ("is not linked with support for", "not supported for tensor subclasses")


def _by_hand(func: Any, args: Any, kwargs: Any) -> Any:
    """Indexing and the like: Python's face of tensors asks the GPU before it dispatches."""
    if func is torch.Tensor.__setitem__ and _is_stranger(args[2]):
        raise RuntimeError(f"expected all tensors on {DEVICE}, found one on cpu")
    given, named = tree_map(_opened, (args, kwargs))
    return tree_map(_closed, func(*given, **named))


def _is_stranger(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.dim() > 0


class _Factories(TorchDispatchMode):
    """Tensors that the library itself makes on the device, inside one of its operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        known = any(isinstance(x, OnDevice) for x in tree_flatten((args, kwargs))[0])
        if known or not _is_ours(kwargs.get("device")):
            return func(*args, **kwargs)
        return _closed(func(*args, **(kwargs | {"device": torch.device("cpu")})))


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, *rest = args
    places = [x for x in (*rest, *kwargs.values()) if isinstance(x, torch.Tensor) or _is_place(x)]
    if not places:
        return func(*args, **kwargs)
    place = places[0]
    ours = isinstance(place, OnDevice) or (not isinstance(place, torch.Tensor) and _is_ours(place))
    dtypes = [x for x in (*rest, *kwargs.values()) if isinstance(x, torch.dtype)]
    if isinstance(place, torch.Tensor):
        dtypes = [place.dtype]
    cast = tensor.to(dtypes[0]) if dtypes else tensor
    if ours:
        return cast if isinstance(cast, OnDevice) else OnDevice(cast)
    return cast.here.clone() if isinstance(cast, OnDevice) else cast


def _is_place(x: Any) -> bool:
    return isinstance(x, (str, torch.device))


def _is_ours(x: Any) -> bool:
    return _is_place(x) and torch.device(x).type == DEVICE.type


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """The module's weights and buffers, in place, on the other device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = torch.nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
                part._parameters[name] = there
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
    return module
