"""Failures of commands: the one-line message and the exit status."""

from __future__ import annotations

import resource

USER, MACHINE = 2, 1
_CONFIGURE = {"compose", "schema", "sources", "fetch", "pin"}
WITHOUT_TORCH = {*_CONFIGURE, "render", "choose", "report", "paper", "audit", "record"}
ADDRESS_SPACE = (
    2 * 2**30
)  # a laptop model with torch uses 1.3 GiB (measured), plus room for its work
_NO_MEMORY = "out of memory; close other programs, or raise the limit (ulimit -v, the job's memory)"
_NO_GPU_MEMORY = (
    "the GPU is out of memory; see `reca plan EXPERIMENT` for what uses it, decrease align.tasks.*.batch and increase "
    "align.accumulation, or set align.activation_checkpointing"
)
_NO_COMPILER = (
    "align.compile needs a C++ compiler; install one, such as g++, or set align.compile=false"
)
_COMPILER_SIGN = "InvalidCxxCompiler"  # torch's error, or in the text of the one around it
# Messages of the loader and torch, which do not raise MemoryError.
_SIGNS = (
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "out of memory",
)


def demand_address_space(verb: str) -> None:
    """OSError if `ulimit -v` is too low for torch, which would otherwise hang or abort without a clear message."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= ADDRESS_SPACE or verb in WITHOUT_TORCH:
        return
    raise OSError(
        f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), but torch takes "
        f"{ADDRESS_SPACE / 2**30:.0f} GiB even for a small model; raise the limit, or lift it with ulimit -v unlimited"
    )


def line_of(error: Exception) -> tuple[str, int] | None:
    """The message and the exit status for an error; None for a bug in this program."""
    text = " ".join(str(error).split())
    if isinstance(error, RecursionError):
        return "an input is nested too deeply", USER
    if isinstance(error, MemoryError):
        return _NO_MEMORY, MACHINE
    if isinstance(error, RuntimeError) and _COMPILER_SIGN in f"{type(error).__name__}: {text}":
        return f"{_NO_COMPILER} ({text[:200]})", MACHINE
    if isinstance(error, ImportError | RuntimeError):
        gave_out = any(sign in text.lower() for sign in _SIGNS)
        remedy = _NO_GPU_MEMORY if "cuda" in text.lower() else _NO_MEMORY
        return (f"{remedy} ({text[:200]})", MACHINE) if gave_out else None
    if isinstance(error, ValueError):
        return text, USER
    return (text, MACHINE) if isinstance(error, OSError) else None
