"""How a command fails: the one line that it prints, and its exit status."""

from __future__ import annotations

import resource

USER, MACHINE = 2, 1
_CONFIGURE = {"compose", "schema", "sources", "fetch", "pin"}
WITHOUT_TORCH = {*_CONFIGURE, "render", "choose", "report", "paper", "audit", "record"}
ADDRESS_SPACE = 2 * 2**30  # of a laptop model with torch: 1.3 GiB (measured), and room for its work
_NO_MEMORY = "out of memory; close other programs, or raise the limit (ulimit -v, the job's memory)"
_NO_GPU_MEMORY = (
    "the GPU's memory is too small for this; `reca plan EXPERIMENT` counts what takes it, align.tasks.*.batch can be "
    "smaller with more align.accumulation, and align.activation_checkpointing keeps less"
)
# How the loader and torch say so: neither raises MemoryError.
_SIGNS = (
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "out of memory",
)


def demand_address_space(verb: str) -> None:
    """OSError where a limit (`ulimit -v`) leaves no room for torch: it would hang or abort without a word of ours."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= ADDRESS_SPACE or verb in WITHOUT_TORCH:
        return
    raise OSError(
        f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), but torch takes "
        f"{ADDRESS_SPACE / 2**30:.0f} GiB even for a small model; raise the limit, or lift it with ulimit -v unlimited"
    )


def line_of(error: Exception) -> tuple[str, int] | None:
    """What to print for an error, and the exit status; None for one that is a fault of this program."""
    text = " ".join(str(error).split())
    if isinstance(error, RecursionError):
        return "an input is nested too deeply", USER
    if isinstance(error, MemoryError):
        return _NO_MEMORY, MACHINE
    if isinstance(error, ImportError | RuntimeError):
        gave_out = any(sign in text.lower() for sign in _SIGNS)
        remedy = _NO_GPU_MEMORY if "cuda" in text.lower() else _NO_MEMORY
        return (f"{remedy} ({text[:200]})", MACHINE) if gave_out else None
    if isinstance(error, ValueError):
        return text, USER
    return (text, MACHINE) if isinstance(error, OSError) else None
