"""One process or many: the same loop, with FSDP2 where torchrun started several ranks."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from reca.core.devices import device_of


@dataclass(frozen=True)
class ProcessGroup:
    """One process among all: its rank, how many there are, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in double precision (exact for token counts)."""
        if self.size == 1:
            return [float(value) for value in values]
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def from_first(self, value: int) -> int:
        """Rank 0's number, on every rank."""
        return int(self.sum([value if self.first else 0])[0])

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def join(device: str = "auto") -> ProcessGroup:
    """The process group that torchrun describes (gloo on CPU, nccl on GPUs), or one process on its own.

    `device` is a name of `device_of`; several ranks take a GPU each, by their local rank.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = device_of(device)
    if size == 1:
        return ProcessGroup(device=own)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    return ProcessGroup(rank, size, own)


def leave() -> None:
    """Close the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- sharding ----------------------------------------------------------------------------------
def trained_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks that training runs through: items of the outermost ModuleLists with trainable weights."""
    found: list[nn.Module] = []
    for child in model.children():
        items = list(child) if isinstance(child, nn.ModuleList) else []
        trained = any(weight.requires_grad for weight in child.parameters())
        if trained and len(items) > 1:
            found.extend(items)
        elif trained:
            found.extend(trained_blocks(child))
    return found


def shard(module: nn.Module, blocks: Sequence[nn.Module], processes: ProcessGroup) -> None:
    """Shard trainable weights over the ranks, block by block, then move the rest to the device.

    Frozen weights stay whole on every rank. Only one block at a time is whole on the device.
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
def recomputed(blocks: Sequence[nn.Module], enabled: bool) -> Iterator[None]:
    """While entered, drop the blocks' activations in the forward pass and compute them again in the backward pass.

    The bound `forward` is replaced instead of the module, so parameter names stay the official ones.
    """
    for block in blocks if enabled else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


# ---- tensors -----------------------------------------------------------------------------------
def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; with shards a collective that every rank must enter."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def like(full: Tensor, example: Tensor) -> Tensor:
    """`full` on the device of `example`, sharded as it is."""
    moved = full.to(example.device)
    if isinstance(example, DTensor):
        return distribute_tensor(moved, example.device_mesh, example.placements)
    return moved
