"""Which implementation is chosen, why, and what `reca doctor` says about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import metadata
from types import ModuleType

import pytest
import torch
from reca_kernels import (
    Layout,
    attention,
    block_attention,
    cross_entropy,
    dispatch,
    flow_matching_loss,
    linear_cross_entropy,
    selfcheck,
    tuning,
)
from reca_kernels import flow as flow_kernels
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reca.cli import main
from tests.kernels.cases import DEVICE, normal

KERNEL = "linear_cross_entropy"
no_gpu = pytest.mark.skipif(DEVICE == "cuda", reason="imitates a GPU, where there is none")


@pytest.fixture(autouse=True)
def forget() -> None:
    dispatch.forget()


def test_auto_is_torch_without_a_gpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reca_kernels.dispatch")
    for _ in range(3):
        assert dispatch.chosen(KERNEL, "auto", torch.device("cpu"), torch.float32) == "torch"
    assert [r.message for r in caplog.records] == [
        "linear_cross_entropy: torch, because the tensors are on cpu"
    ]


@no_gpu
def test_triton_is_refused_where_nothing_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    hidden, targets = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="TRITON_INTERPRET is not 1; use 'auto'"):
        linear_cross_entropy(hidden, hidden, targets, implementation="triton")


@no_gpu
@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_old_gpus_take_torch(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(selfcheck, "first_difference", lambda kernel, device: None)
    chosen, reason = dispatch.automatic(KERNEL, 0)
    assert chosen == ("torch" if capability == (7, 5) else "triton")
    assert ("7.5 is below 8.0" if chosen == "torch" else "matches its reference") in reason


@no_gpu
@pytest.mark.parametrize("fault", ["different", "broken"])
def test_a_kernel_that_differs_falls_back(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def check(kernel: str, device: torch.device) -> str:
        if fault == "broken":
            raise RuntimeError("no such instruction")
        return "weight in float16 errs by 1.0e+00"

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(selfcheck, "first_difference", check)
    chosen, reason = dispatch.automatic(KERNEL, 0)
    assert chosen == "torch"
    assert ("no such instruction" if fault == "broken" else "weight in float16") in reason
    assert any(r.levelno == logging.WARNING and "falling back" in r.message for r in caplog.records)


# ---- the caller's state: what `auto` decides on its first call must not depend on it ------------------
@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`auto` takes Triton as on a GPU: the device of the other tests (a CPU and the interpreter, where
    there is none) stands for it. Gives the kernels that were compared, in order.
    """
    compare, compared = selfcheck.first_difference, list[str]()

    def first_difference(kernel: str, device: torch.device) -> str | None:
        compared.append(kernel)
        return compare(kernel, torch.device(DEVICE))

    monkeypatch.setattr(dispatch, "gpu_index", lambda device: 0)
    monkeypatch.setattr(dispatch, "cannot_run", lambda device: None)
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(selfcheck, "first_difference", first_difference)
    # the type that an autocast which leaks would round; the other two are compared by `reca doctor`, below
    monkeypatch.setattr(selfcheck, "TOLERANCE", {torch.float32: selfcheck.TOLERANCE[torch.float32]})
    return compared


def attend(x: Tensor, w: Tensor) -> Tensor:
    layout = Layout.packed([[("causal", 5), ("full", len(x) - 5)]], x.device)
    q = (x @ w.T).unflatten(1, (2, -1))
    return block_attention(q, q, q, layout)


def flow(x: Tensor, w: Tensor) -> Tensor:
    data = torch.zeros(len(x), len(w), device=x.device)
    return flow_matching_loss(x, w, None, data, data)


def next_token(x: Tensor, w: Tensor) -> Tensor:
    return linear_cross_entropy(x, w, torch.arange(len(x), device=x.device))


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear_cross_entropy": next_token,
    "flow_matching_loss": flow,
    "block_attention": attend,
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kernel", CALLS)
def test_the_first_call_may_lie_in_a_checkpointed_block(
    kernel: str, reentrant: bool, on_device: list[str]
) -> None:
    x, w = normal(torch.float32, 12, 16), normal(torch.float32, 16, 16, seed=1)
    gradients = []
    for run in (partial(checkpoint, CALLS[kernel], use_reentrant=reentrant), CALLS[kernel]):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        with torch.autocast(DEVICE, torch.bfloat16):
            run(*leaves).float().square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert on_device == [kernel] and dispatch.automatic(kernel, 0)[0] == "triton"
    # a reentrant checkpoint's first pass makes no gradients, and so takes the tiles, whose logits are not rounded
    rounded = reentrant and kernel == KERNEL
    for recomputed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(
            recomputed, plain, rtol=0.02 if rounded else 0, atol=0.02 if rounded else 0
        )


def hooks_that_refuse() -> AbstractContextManager[None]:
    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError("a tensor of the comparison reached the caller's hooks")

    return torch.autograd.graph.saved_tensors_hooks(refuse, refuse)


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, DEVICE, torch.bfloat16),
    "hooks": hooks_that_refuse,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("state", STATES)
def test_the_first_call_may_lie_in_any_state(state: str, on_device: list[str]) -> None:
    with STATES[state]():
        chosen, reason = dispatch.automatic(KERNEL, 0)
    assert (chosen, on_device) == ("triton", [KERNEL]), reason


def test_threads_compare_one_after_another(
    on_device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, times = [0], [0]

    def alone(kernel: str, device: torch.device) -> None:
        inside[0] += 1
        times[0] += 1
        assert inside[0] == 1
        time.sleep(0.05)
        inside[0] -= 1

    monkeypatch.setattr(selfcheck, "first_difference", alone)
    with ThreadPoolExecutor(4) as threads:
        found: Iterator[tuple[str, str]] = threads.map(partial(dispatch.automatic, KERNEL), [0] * 8)
        assert {chosen for chosen, _ in found} == {"triton"}
    assert times == [1], "threads that wait for an answer must not check again"


# per operator the kernels' functions with what they give, of which each part is made wrong in turn
FAULTS = [
    (KERNEL, cross_entropy, "fused", ("loss", "hidden", "weight", "bias")),
    (KERNEL, cross_entropy, "log_sums", ("lse", "loss")),
    (KERNEL, cross_entropy, "slabs", ("hidden", "weight", "bias")),
    ("flow_matching_loss", flow_kernels, "tiled", ("loss", "kept")),
    ("flow_matching_loss", flow_kernels, "products", ("hidden", "weight", "bias")),
    ("block_attention", attention, "tiled", ("output", "lse")),
    ("block_attention", attention, "tiled_gradients", ("q", "k", "v")),
]


RIGHT: set[str] = set()  # kernels whose right results were found right


@no_gpu
@pytest.mark.parametrize(("kernel", "module", "name", "parts"), FAULTS, ids=lambda x: str(x)[-40:])
def test_the_self_check_notices_each_wrong_result(
    kernel: str,
    module: ModuleType,
    name: str,
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = getattr(module, name)
    monkeypatch.setattr(selfcheck, "TOLERANCE", {torch.float32: selfcheck.TOLERANCE[torch.float32]})
    if kernel not in RIGHT:
        assert selfcheck.first_difference(kernel, torch.device("cpu")) is None
        RIGHT.add(kernel)
    for index, part in enumerate(parts):

        def wrong(*given: object, index: int = index) -> object:
            out = right(*given)
            nested = isinstance(out[1], tuple)  # a loss and its gradients
            flat = [out[0], *out[1]] if nested else list(out)
            flat[index] = flat[index] * 1.05
            return (flat[0], tuple(flat[1:])) if nested else tuple(flat)

        monkeypatch.setattr(module, name, wrong)
        problem = selfcheck.first_difference(kernel, torch.device("cpu"))
        assert problem is not None and "5e-04 is allowed" in problem, part


def test_the_self_check_builds_what_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the interpreter: sizes that 16 divides, selected rows or not, several tiles, heads of 64 and 128."""
    monkeypatch.setattr(selfcheck, "interpreted", lambda: False)
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    for kernel in ("linear_cross_entropy", "flow_matching_loss"):
        for make in selfcheck._CASES[kernel].values():
            inputs = make(dtype, cpu)[2]
            (rows, width), outputs = inputs["hidden"].shape, len(inputs["weight"])
            block = tuning.cross_entropy(dtype)
            assert rows % 16 == width % 16 == outputs % 16 == 0
            assert rows > block["BM"] and width > block["BD"]
            assert kernel != "linear_cross_entropy" or outputs > 2 * block["BV"]
    widths = []
    for case, make in selfcheck._CASES["block_attention"].items():
        tokens, heads, width = make(dtype, cpu)[2]["q"].shape
        widths.append(width)
        assert ("long" in case) == (tokens > 2048), "tiles of long samples are checked, too"
        for name in ("forward", "query", "key"):
            block = tuning.attention(name, dtype, width, cpu)
            # three samples, each of two tiles on average: they begin with their sample
            assert tokens >= 2 * 3 * max(block["BQ"], block["BK"]) and heads > 1
    assert widths == [64, 64, 128, 128]
    shared = [make(dtype, cpu)[2] for make in selfcheck._CASES["block_attention"].values()]
    assert {one["q"].shape[1] // one["k"].shape[1] for one in shared} == {1, 2}
    # vocabularies of models: one program loads 4096 logits at a time, and 64 does not divide their number
    sums = selfcheck._CASES["linear_cross_entropy"]["a sum over selected rows"]
    columns = len(sums(dtype, cpu)[2]["weight"]) - 15
    assert columns % 64 and tuning.softmax(columns)["BV"] == 4096


def test_the_self_check_runs_on_a_device_that_is_not_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(selfcheck, "current_device", current)
    monkeypatch.setattr(selfcheck, "excess", lambda *case: {"output": 0.0})
    monkeypatch.setattr(selfcheck, "_CASES", {KERNEL: {"one": lambda dtype, device: ()}})
    list(selfcheck.differences(KERNEL, torch.device("cuda", 1)))
    assert entered == [torch.device("cuda", 1)] * 3


def test_doctor_names_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for kernel in selfcheck.KERNELS:
        assert f"{kernel} on " in said
    assert "DIFFERENT" not in said and said.count("equal") == 9  # three kernels in three types
    # the package's version: PyPI's wheel for CUDA is 2.13.0, and torch calls itself 2.13.0+cu130
    assert f"torch         {metadata.version('torch')}" in said and "GiB" in said


@no_gpu
def test_doctor_fails_where_a_kernel_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(selfcheck.TOLERANCE, torch.float16, -1.0)
    monkeypatch.setattr(selfcheck, "KERNELS", ("flow_matching_loss",))
    assert main(["doctor"]) == 1
    assert "float16   DIFFERENT" in capsys.readouterr().out
