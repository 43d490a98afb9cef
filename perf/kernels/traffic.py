"""Bytes that the Triton kernels load and store per call, counted in the interpreter, against the minimum.

    TRITON_INTERPRET=1 python perf/kernels/traffic.py

Uses the tuned tiles, on sizes of a few tiles. Loads that a GPU's L2 cache would serve are counted,
too, so the figure is what the tiles request; masked lanes count nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import reca_kernels
import torch
from reca_kernels import Layout, tuning
from triton.runtime import interpreter

_MOVED = {"load": 0, "store": 0}


def count_traffic() -> None:
    """Count the bytes of unmasked lanes in every load and store of a kernel from now on."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        out = load(self, pointers, mask, *rest)
        _MOVED["load"] += int(np.count_nonzero(mask.data)) * out.data.itemsize
        return out

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _MOVED["store"] += int(np.count_nonzero(mask.data)) * value.data.itemsize
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16().requires_grad_()


def _size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def rows() -> list[dict[str, Any]]:
    """Per operation and pass: bytes loaded and stored, and the minimum (each tensor once)."""
    found = []
    hidden, weight = _leaf(256, 256), _leaf(512, 256)
    targets = torch.arange(256)
    least = _size(hidden, weight)
    loss = reca_kernels.linear_cross_entropy
    found += _both("linear_cross_entropy N=256 D=256 V=512",
                   lambda: loss(hidden, weight, targets, implementation="triton"), least, 2 * least)  # fmt: skip
    head, data = _leaf(64, 256), torch.randn(2, 256, 64).unbind(0)
    least = _size(hidden, head, *data)
    flow = reca_kernels.flow_matching_loss
    found += _both("flow_matching_loss N=256 D=256 C=64",
                   lambda: flow(hidden, head, None, *data, implementation="triton"),
                   least, least + _size(hidden, head))  # fmt: skip
    layout = Layout.packed([[("full", 192), ("causal", 64), ("noise", 256)]])
    q, k, v = _leaf(512, 2, 64), _leaf(512, 1, 64), _leaf(512, 1, 64)
    attend = reca_kernels.block_attention
    found += _both("block_attention T=512 H=2 K=1 E=64",
                   lambda: attend(q, k, v, layout, implementation="triton").sum(),
                   _size(q, k, v, q), 2 * _size(q, k, v) + 2 * _size(q))  # fmt: skip
    return found


def _both(case: str, forward: Any, least_forward: int, least_backward: int) -> list[dict[str, Any]]:
    found = []
    out, moved = _counted(forward)
    found.append({"case": case, "pass": "forward", **moved, "least": least_forward})
    _, moved = _counted(out.backward)
    found.append({"case": case, "pass": "backward", **moved, "least": least_backward})
    for row in found:
        row["times_the_least"] = round((row["load"] + row["store"]) / row["least"], 2)
    return found


def _counted(call: Any) -> tuple[Any, dict[str, int]]:
    _MOVED.update(load=0, store=0)
    return call(), dict(_MOVED)


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tuning.interpreted = lambda: False  # the tiles of a GPU, not the interpreter's small ones
    count_traffic()
    for row in rows():
        print(json.dumps(row) if options.json else row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
