"""Which implementation is chosen, why, and what `reca doctor` says about it."""

from __future__ import annotations

import logging

import pytest
import torch
from reca_kernels import choice, linear_cross_entropy, selfcheck

from reca.cli import main
from tests.kernels.cases import DEVICE

KERNEL = "linear_cross_entropy"
no_gpu = pytest.mark.skipif(DEVICE == "cuda", reason="imitates a GPU, where there is none")


@pytest.fixture(autouse=True)
def forget() -> None:
    choice.automatic.cache_clear()
    choice._log_once.cache_clear()


def test_auto_is_torch_without_a_gpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reca_kernels.choice")
    for _ in range(3):
        assert choice.chosen(KERNEL, "auto", torch.zeros(1)) == "torch"
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
    chosen, reason = choice.automatic(KERNEL, 0)
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
    chosen, reason = choice.automatic(KERNEL, 0)
    assert chosen == "torch"
    assert ("no such instruction" if fault == "broken" else "weight in float16") in reason
    assert any(r.levelno == logging.WARNING and "falling back" in r.message for r in caplog.records)


@no_gpu
def test_the_self_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selfcheck.first_difference(KERNEL, torch.device("cpu")) is None
    right = selfcheck.face.linear_cross_entropy
    monkeypatch.setattr(
        selfcheck.face, "linear_cross_entropy", lambda *a, **k: right(*a, **k) * 1.01
    )
    problem = selfcheck.first_difference(KERNEL, torch.device("cpu"))
    assert problem is not None and "allowed is 5e-04" in problem


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
