"""Which implementation is chosen, why, and what `reca doctor` says about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from reca_kernels import (
    Layout,
    block_attention,
    cross_entropy,
    dispatch,
    flow_matching_loss,
    linear_cross_entropy,
    selfcheck,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reca.cli import main
from tests.kernels.cases import DEVICE, normal

KERNEL = "linear_cross_entropy"
no_gpu = pytest.mark.skipif(DEVICE == "cuda", reason="imitates a GPU, where there is none")


@pytest.fixture(autouse=True)
def forget() -> None:
    dispatch.automatic.cache_clear()
    dispatch._log_once.cache_clear()


def test_auto_is_torch_without_a_gpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reca_kernels.dispatch")
    for _ in range(3):
        assert dispatch.chosen(KERNEL, "auto", torch.zeros(1)) == "torch"
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
    for recomputed, plain in zip(*gradients, strict=True):
        assert torch.equal(recomputed, plain)


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
    inside = [0]

    def alone(kernel: str, device: torch.device) -> None:
        inside[0] += 1
        assert inside[0] == 1
        torch.ones(300, 300) @ torch.ones(300, 300)
        inside[0] -= 1

    monkeypatch.setattr(selfcheck, "first_difference", alone)
    with ThreadPoolExecutor(4) as threads:
        found: Iterator[tuple[str, str]] = threads.map(partial(dispatch.automatic, KERNEL), [0] * 8)
        assert {chosen for chosen, _ in found} == {"triton"}


@no_gpu
def test_the_self_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selfcheck.first_difference(KERNEL, torch.device("cpu")) is None
    right = cross_entropy.Triton.apply
    wrong = SimpleNamespace(apply=lambda *given: right(*given) * 1.01)
    monkeypatch.setattr(cross_entropy, "Triton", wrong)
    problem = selfcheck.first_difference(KERNEL, torch.device("cpu"))
    assert problem is not None and "5e-04 is allowed" in problem


def test_doctor_names_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for kernel in selfcheck.KERNELS:
        assert f"{kernel} on " in said
    assert "DIFFERENT" not in said and said.count("equal") == 9  # three kernels in three types
    assert f"torch         {torch.__version__}" in said and "GiB" in said


@no_gpu
def test_doctor_fails_where_a_kernel_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(selfcheck.TOLERANCE, torch.float16, -1.0)
    monkeypatch.setattr(selfcheck, "KERNELS", ("flow_matching_loss",))
    assert main(["doctor"]) == 1
    assert "float16   DIFFERENT" in capsys.readouterr().out
