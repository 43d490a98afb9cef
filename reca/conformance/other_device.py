"""A simulated GPU: its tensors are in CPU memory and computed there, but cannot be combined with CPU tensors.

Finds inputs that were not moved to the device and results that were not moved back, on a machine without a GPU. Tensors
have real values, so code that depends on them (`.item()`, sampling loops) works as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from reca_kernels import dispatch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor on the simulated device; `here` is the CPU tensor with its data."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> OnDevice:
        """Wrap a CPU tensor."""
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
        strangers = [x for x in _leaves((args, kwargs)) if _is_stranger(x)]
        # like on a GPU, indices, sources of copies and 0-d tensors may be on the CPU
        if strangers and func is not torch.ops.aten.copy_.default and not _indexes(func, args):
            raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, found one on cpu")
        if target is not None and torch.device(target).type == DEVICE.type:
            kwargs["device"] = torch.device("cpu")
        given_args, given_kwargs = _mapped(_opened, (args, kwargs))
        found = func(*given_args, **given_kwargs)
        if target is not None and torch.device(target).type == "cpu":
            return found.clone()
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        name = func._schema.name.split("::")[1]
        if name.endswith("_") and not name.startswith("_"):
            return args[0]
        return _mapped(_closed, found)


# What operations are given and return is nested in tuples, lists and dictionaries alone; torch's functions for trees of
# any type take longer than most operations on tiny tensors.
def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, (tuple, list)):
        yield x
        return
    for one in x:
        yield from _leaves(one)


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    if type(x) is tuple:
        return tuple([_mapped(function, one) for one in x])
    if type(x) is list:
        return [_mapped(function, one) for one in x]
    if type(x) is dict:
        return {name: _mapped(function, one) for name, one in x.items()}
    return function(x)


def _indexes(func: Any, args: Any) -> bool:
    return func is torch.ops.aten.index.Tensor and isinstance(args[0], OnDevice)


def _opened(x: Any) -> Any:
    return x.here if isinstance(x, OnDevice) else x


def _closed(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, torch.Tensor) else x


class GpuInName(TorchFunctionMode):
    """While active, `device="cuda"` and `.to("cuda")` create such tensors; only for code without gradients.

    Operations whose Python bindings would query a real GPU before dispatching are handled here.
    """

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()  # a no-op guard, as for fake tensors
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


# Functions that would query a real GPU. The device has no generator (random numbers come from the CPU's, so `fork_rng`
# has nothing to save) and no Triton.
_REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "get_rng_state", lambda device=None: torch.zeros(0, dtype=torch.uint8)),
    (torch.cuda, "set_rng_state", lambda state, device=None: None),
    (dispatch, "automatic", lambda kernel, index: ("torch", "the device is simulated")),
)
_ASKS_THE_GPU = ("is not linked with support for", "not supported for tensor subclasses")


def _by_hand(func: Any, args: Any, kwargs: Any) -> Any:
    """Indexing and similar operations, whose Python bindings query the GPU before dispatching."""
    if func is torch.Tensor.__setitem__ and _is_stranger(args[2]):
        raise RuntimeError(f"expected all tensors on {DEVICE}, found one on cpu")
    given, named = tree_map(_opened, (args, kwargs))
    return tree_map(_closed, func(*given, **named))


def _is_stranger(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.dim() > 0


class _Factories(TorchDispatchMode):
    """Wraps tensors that torch creates on the device inside its own operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not _is_ours(kwargs.get("device")):
            return func(*args, **kwargs)
        if any(isinstance(x, OnDevice) for x in _leaves((args, kwargs))):
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
    """Move a module's weights and buffers to the simulated device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = torch.nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
                part._parameters[name] = there
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
    return module
