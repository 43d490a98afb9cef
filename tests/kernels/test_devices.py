"""What a GPU needs and a CPU can show: offsets beyond 2^31, the device of a launch, how torch rounds products."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reca_kernels import Layout, block_attention, language, tuning

from tests.kernels.cases import DEVICE, normal

KERNELS = Path(language.__file__).parent


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_heads_first_beyond_two_to_the_31_elements(heads: tuple[int, int]) -> None:
    """Head 3 starts at element 3 * 2^30: its offset is wider than the index and the stride that make it."""
    layout = Layout.packed([[("causal", 3), ("full", 6)]], DEVICE)
    tokens, stride = layout.tokens, 2**30

    # pages that nothing is written to take no memory on a CPU; on a GPU the three views share their 6 GiB
    room = torch.empty(3 * stride + 3 * tokens * 16, dtype=torch.float16, device=DEVICE)

    def far(count: int, number: int) -> torch.Tensor:
        view = room.as_strided((tokens, count, 16), (16, stride, 1), number * tokens * 16)
        return view.copy_(normal(torch.float16, tokens, count, 16, seed=number))

    given = [far(heads[0], 0), far(heads[1], 1), far(heads[1], 2)]
    found = []
    for leaves in (given, [t.contiguous() for t in given]):
        leaves = [t.detach().requires_grad_() for t in leaves]
        out = block_attention(*leaves, layout, implementation="triton")
        found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_launch_makes_the_device_of_its_tensor_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which on a machine with several may be another one."""
    entered: list[object] = []

    @contextmanager
    def device(index: torch.device) -> Iterator[None]:
        entered.append(index)
        yield
        entered.append("left")

    class Tensor:
        device = torch.device("cuda", 1)

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *arguments, **options: entered.append((grid, options))

    monkeypatch.setattr(torch.cuda, "device", device)
    language.launch(Kernel(), (2, 3), Tensor(), 5, BM=16)  # type: ignore[arg-type]
    assert entered == [torch.device("cuda", 1), ((2, 3), {"BM": 16}), "left"]


def test_every_launch_goes_through_one_function() -> None:
    files = list(KERNELS.glob("*.py"))
    assert "attention.py" in {file.name for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                assert file.name == "language.py", f"{file.name}:{node.lineno} launches by itself"


TF32 = {
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('highest')": "ieee",
    "pass": "ieee",
}


def test_the_precision_of_products_is_read_from_both_interfaces() -> None:
    """Each in a process of its own: torch refuses the old question after an answer to the new one."""
    lines = "; ".join(f"show({setting!r})" for setting in TF32)
    code = (
        "import os, torch; from reca_kernels import tuning\n"
        "def show(setting):\n"
        "    if os.fork() == 0:\n"
        "        exec(setting); print(tuning.precision(), flush=True); os._exit(0)\n"
        f"    os.wait()\n{lines}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(TF32.values())


def test_the_precision_of_products_in_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Matmul:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul)
    assert tuning.precision() == "tf32"
