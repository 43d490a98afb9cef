"""Started by torchrun in test_sharded.py: `reca`, one of whose ranks is killed in the second step."""

from __future__ import annotations

import os
import sys

from torch.distributed.tensor import DTensor

from reca.align import distributed
from reca.cli import main
from tests.align import runs


def checked(shard):
    """Sharding that leaves frozen weights whole, and no trained weight."""

    def sharding(module, blocks, processes):
        shard(module, blocks, processes)
        for name, weight in module.named_parameters():
            assert isinstance(weight, DTensor) == weight.requires_grad, name

    return sharding


if __name__ == "__main__":
    distributed.shard = checked(distributed.shard)
    if os.environ["RANK"] == "1":
        runs.kill_at(int(sys.argv[1]) + 1)
    sys.exit(main(sys.argv[2:]))
