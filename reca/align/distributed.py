"""Process groups and sharding: one loop for one process or many, with FSDP2 under torchrun."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from reca.core.devices import device_of

COMPILER = "inductor"
"""The compiler of `align.compile`: a backend of torch.compile."""


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process, the number of processes, and this process's device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each value over the ranks in double precision (exact for token counts)."""
        if self.size == 1:
            return [float(value) for value in values]
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def from_first(self, value: int) -> int:
        """The value of rank 0, on every rank."""
        return int(self.sum([value if self.first else 0])[0])

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def join(device: str = "auto") -> ProcessGroup:
    """The process group started by torchrun (gloo on CPU, nccl on GPUs), or a single process.

    `device` is a name that `device_of` accepts; each of several ranks uses the GPU of its local rank.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = device_of(device)
    if size == 1:
        return ProcessGroup(device=own)
    if own.type == "cuda":
        own = torch.device("cuda", _local_gpu())
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    return ProcessGroup(rank, size, own)


def _local_gpu() -> int:
    """The number of this process's GPU; ValueError if this node has fewer GPUs than processes."""
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        started = os.environ["LOCAL_WORLD_SIZE"]
        raise ValueError(
            f"resources.gpus: {started} processes were started on this node, but PyTorch sees {count} GPUs here; set "
            f"resources.gpus to at most {count}, or ask for a node with more"
        )
    return local


def leave() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- sharding ----------------------------------------------------------------------------------
def trained_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks used in training: items of the outermost ModuleLists with trainable weights."""
    blocks: list[nn.Module] = []
    for child in model.children():
        items = list(child) if isinstance(child, nn.ModuleList) else []
        trained = any(weight.requires_grad for weight in child.parameters())
        if trained and len(items) > 1:
            blocks.extend(items)
        elif trained:
            blocks.extend(trained_blocks(child))
    return blocks


def shard(module: nn.Module, blocks: Sequence[nn.Module], processes: ProcessGroup) -> None:
    """Shard trainable weights over the ranks, block by block, then move the rest to the device.

    Frozen weights are replicated on every rank. At most one block at a time is unsharded on the device.
    """
    if processes.size > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(processes.device.type, (processes.size,))
        frozen = {weight for weight in module.parameters() if not weight.requires_grad}
        for block in [*blocks, module]:
            fully_shard(block, mesh=mesh, ignored_params=frozen)
    module.to(processes.device)


@contextmanager
def wrapped(
    blocks: Sequence[nn.Module], *, recompute: bool, compiled: bool = False
) -> Iterator[None]:
    """Context in which the blocks are compiled, and dropped activations are recomputed in the backward pass.

    The bound `forward` is replaced instead of the module, so parameter names stay the official ones, and the hooks of
    FSDP2 run outside of the compiled code, as does recomputation.
    """
    if compiled:
        _check_compiler(blocks)
    for block in blocks if compiled else ():
        # Shapes are symbols from the first call on, so that what is compiled does not depend on the batch that a run
        # begins or resumes with.
        block.forward = torch.compile(block.forward, backend=COMPILER, dynamic=True)
    for block in blocks if recompute else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        with _compiles(2 * len(blocks)) if compiled else nullcontext():
            yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _check_compiler(blocks: Sequence[nn.Module]) -> None:
    """The compiler's own error if it has no C++ compiler for the CPU: later, pages of warnings would come before it."""
    on_cpu = any(weight.device.type == "cpu" for block in blocks for weight in block.parameters())
    if COMPILER == "inductor" and on_cpu:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()


def _compiles(versions: int) -> AbstractContextManager[None]:
    """Context in which a function may be compiled that often: blocks share it, but some read their own constants."""
    limit = max(versions, torch._dynamo.config.recompile_limit)
    found: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=limit)
    return found


# ---- tensors -----------------------------------------------------------------------------------
def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor [...] on the CPU; for a sharded tensor a collective that every rank must call."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def like(full: Tensor, example: Tensor) -> Tensor:
    """`full` on the device of `example`, sharded like it."""
    moved = full.to(example.device)
    if isinstance(example, DTensor):
        return distribute_tensor(moved, example.device_mesh, example.placements)
    return moved
