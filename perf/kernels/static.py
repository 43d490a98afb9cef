"""Analysis of the kernels without a GPU: each launch compiled for each target and inspected.

    python perf/kernels/static.py            # a table
    python perf/kernels/static.py --json     # one JSON line per kernel and target

The public functions are called with the tuned configurations while launches are only recorded, so the
same kernels are compiled that a GPU would run. Must not run under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import reca_kernels
import torch
import triton
from reca_kernels import dispatch, tuning
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
MATRIX_UNIT = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32",
    torch.int64: "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel as the package launches it: its arguments by name, constants and options."""

    case: str
    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...]


@contextmanager
def noted(
    case: str, launches: list[Launch], capability: tuple[int, int] = (8, 0)
) -> Iterator[None]:
    """Context in which launches are recorded instead of executed, as on a device of that compute capability."""

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        names = kernel.arg_names[: len(args)]
        arguments = dict(zip(names, args, strict=True)) | kwargs
        launches.append(Launch(case, kernel, arguments, options, tuple(grid)))

    run, cannot_run, before = JITFunction.run, dispatch.cannot_run, tuning.capability
    JITFunction.run, dispatch.cannot_run = note, lambda device: None
    tuning.capability = lambda device: capability
    try:
        yield
    finally:
        JITFunction.run, dispatch.cannot_run, tuning.capability = run, cannot_run, before


def launches(
    types: Sequence[str] = ("bf16", "fp32"),
    unaligned: bool = True,
    capability: tuple[int, int] = (8, 0),
) -> list[Launch]:
    """Every kernel at the models' widths, for these dtypes, at sizes that 16 divides and at others.

    Heads are 64 and 128 wide, of unaligned tokens 64 and 80: a stride of 80 numbers is aligned, its tile is not full.
    Long samples have tiles of their own in 16 bits at 128.
    """
    found: list[Launch] = []
    for dtype in (d for d, name in _TYPES.items() if name in types):
        name = _TYPES[dtype]
        for odd in (0, 2) if unaligned else (0,):
            suffix = " unaligned" if odd else ""
            with noted(f"linear_cross_entropy {name}{suffix}", found, capability):
                _cross_entropy(dtype, odd)
            with noted(f"flow_matching_loss {name}{suffix}", found, capability):
                _flow(dtype, odd)
            for width in (64, 80) if odd else (64, 128):
                with noted(f"block_attention {name} head {width}{suffix}", found, capability):
                    _attention(dtype, width, odd)
            with noted(f"block_attention {name} head 64 own keys{suffix}", found, capability):
                _attention(dtype, 64, odd, shared=1)
            if not odd and dtype != torch.float32:
                with noted(f"block_attention {name} head 128 long", found, capability):
                    _attention(dtype, 128, odd, 4096)
    return found


def _leaf(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def _cross_entropy(dtype: torch.dtype, odd: int) -> None:
    """A scalar loss with its gradients, and losses by row; rows and ids may be odd, widths of models are not."""
    rows, width, vocabulary = 1024 + odd, 2048, 1024 + odd
    hidden, weight, bias = (
        _leaf(dtype, *shape) for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.arange(rows) % 1024
    targets[::2] = -100
    for reduction in ("sum", "none"):
        loss = reca_kernels.linear_cross_entropy(
            hidden, weight, targets, bias, reduction=reduction, implementation="triton"
        )
        loss.sum().backward()


def _flow(dtype: torch.dtype, odd: int) -> None:
    rows, width, channels = 256 + odd, 3584, 64 - odd
    leaves = (_leaf(dtype, *s) for s in ((rows, width), (channels, width), (channels,)))
    data = torch.zeros(2, rows, channels, dtype=torch.float32).unbind(0)
    mask = torch.arange(rows) % 2 == 0
    reca_kernels.flow_matching_loss(*leaves, *data, mask, implementation="triton").backward()


def _attention(dtype: torch.dtype, width: int, odd: int, noise: int = 240, shared: int = 4) -> None:
    layout = reca_kernels.Layout.packed([[("full", 256), ("causal", 16 + odd), ("noise", noise)]])
    q, k, v = (_leaf(dtype, layout.tokens, heads, width) for heads in (8, 8 // shared, 8 // shared))
    out = reca_kernels.block_attention(q, k, v, layout, implementation="triton")
    out.backward(torch.ones_like(out))


# ---- compilation ---------------------------------------------------------------------------------
def compiled(launch: Launch, target: str) -> dict[str, Any]:
    """Compile a launch for a target and report registers, spills, shared memory, instructions."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        signature[parameter.name], aligned = _described(parameter.is_constexpr, value)
        if signature[parameter.name] == "constexpr":
            constants[(index,)] = value
        elif aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = dict(launch.options)
    if target == "gfx942":
        options["num_stages"] = min(options.get("num_stages", 2), 2)
    built = triton.compile(source, target=TARGETS[target], options=options)
    described = {
        "case": launch.case, "kernel": launch.kernel.__name__, "target": target,
        "warps": built.metadata.num_warps, "stages": options.get("num_stages"),
        "shared": built.metadata.shared, "shared_limit": SHARED[target],
    }  # fmt: skip
    read = _amd if target == "gfx942" else _nvidia
    return described | read(built, MATRIX_UNIT[target]) | _fits(described)


def _described(is_constant: bool, value: Any) -> tuple[str, bool]:
    """Type in the signature, and whether the launcher would specialise on divisibility by 16."""
    if is_constant or value is None or (type(value) is int and value == 1):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype], True
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>", False
    if isinstance(value, float):
        return "fp32", False
    return "i32", value % 16 == 0


def _nvidia(built: Any, unit: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", "-ndf", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b(?:{pattern})\b", code))

    return {
        "registers": registers, "stack": stack, "spills": count("STL|LDL"), "matrix_unit": unit,
        "matrix_instructions": count(unit), "atomics": count("RED|REDG|ATOM|ATOMG"),
        "hmma": count("HMMA"), "serialised": _serialised(built.asm["ptx"], built.metadata.arch),
        "copies": count("LDGSTS|UBLKCP|UTMALDG"), "narrow_loads": _narrow(code),
    }  # fmt: skip


def _serialised(ptx: str, arch: int | str) -> int:
    """How many functions ptxas reports with warning C7515: it runs their wgmma instructions one after another."""
    number = int(re.search(r"\d+", str(arch))[0])
    if number != 90:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        said = _tool("ptxas", f"-arch=sm_{number}a", "-v", str(source), "-o", f"{folder}/out")
    return said.count("C7515") or said.count("wgmma.mma_async instructions are serialized")


def _narrow(code: str) -> int:
    """Loads from global memory of less than 4 bytes: what is left where rows are not aligned."""
    return len(re.findall(r"\bLDG\.E\.(?:U|S)(?:8|16)\b", code))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _amd(built: Any, unit: str) -> dict[str, Any]:
    code = built.asm["amdgcn"]
    return {
        "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", code)[1]),
        "stack": 0,
        "spills": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", code)[1]),
        "matrix_unit": unit,
        "matrix_instructions": len(re.findall(unit, code)),
        "atomics": len(re.findall(r"_atomic_", code)),
    }  # fmt: skip


def _fits(described: dict[str, Any]) -> dict[str, Any]:
    return {"fits": described["shared"] <= described["shared_limit"]}


def occupancy(row: dict[str, Any]) -> float:
    """Bound on resident warps as a fraction of the maximum (64 on NVIDIA), by registers and shared memory."""
    by_registers = 65536 // max(row["registers"] * row["warps"] * 32, 1)
    by_shared = row["shared_limit"] // max(row["shared"], 1)
    return min(min(by_registers, by_shared, 32) * row["warps"] / 64, 1.0)


def report(
    targets: Sequence[str], types: Sequence[str] = ("bf16", "fp32"), unaligned: bool = True
) -> list[dict[str, Any]]:
    """One row per launch and target; a failure to compile is a row with `error`."""
    rows, seen = [], set()
    old = launches(types, unaligned)
    new = {
        "sm_90": launches(types, unaligned, (9, 0)),
        "sm_100": launches(types, unaligned, (10, 0)),
    }
    for target in targets:
        for launch in new.get(target, old):
            constants = [launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr]
            key = (launch.kernel.__name__, launch.case, target, str(constants))
            if key in seen:
                continue
            seen.add(key)
            try:
                row = compiled(launch, target)
                row["occupancy"] = occupancy(row)
            except Exception as error:
                row = {"case": launch.case, "kernel": launch.kernel.__name__, "target": target}
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows.append(row)
    return rows


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--types", nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--aligned", action="store_true", help="only sizes that 16 divides")
    options = parser.parse_args()
    rows = report(options.targets, options.types, not options.aligned)
    for row in rows:
        if options.json:
            print(json.dumps(row))
            continue
        if "error" in row:
            print(f"{row['case']:30} {row['kernel']:24} {row['target']:7} FAILED {row['error']}")
            continue
        print(
            f"{row['case']:34} {row['kernel']:24} {row['target']:7} registers {row['registers']:3} "
            f"spills {row['spills']:2} stack {row['stack']:3} shared {row['shared'] / 1024:5.1f} KiB "
            f"occupancy {row['occupancy']:.2f} {row['matrix_unit']} {row['matrix_instructions']} "
            f"hmma {row.get('hmma', 0)} serialised {row.get('serialised', 0)} copies {row.get('copies', 0)} "
            f"narrow loads {row.get('narrow_loads', 0)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
