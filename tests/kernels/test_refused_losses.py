"""Inputs that the losses refuse, each in one line, and a package that imports nothing of reca."""

from __future__ import annotations

import pytest
import reca_kernels
import torch
from reca_kernels import flow_matching_loss, linear_cross_entropy


def test_bad_inputs_are_refused() -> None:
    hidden, weight = torch.zeros(3, 4), torch.zeros(9, 4)
    targets = torch.tensor([0, 5, -100])
    refused = [
        (
            lambda: linear_cross_entropy(hidden, weight, targets, vocab=(0, 5)),
            "target 5 is outside",
        ),
        (lambda: linear_cross_entropy(hidden, weight, torch.tensor([0, -1, 2])), "target -1"),
        (lambda: linear_cross_entropy(hidden, weight, targets, vocab=(3, 10)), "vocab"),
        (lambda: linear_cross_entropy(hidden, weight[:, :3], targets), "does not fit"),
        (
            lambda: linear_cross_entropy(hidden, weight.double(), targets),
            "one floating-point dtype",
        ),
        (lambda: linear_cross_entropy(hidden, weight, targets[:2]), "targets"),
        (lambda: linear_cross_entropy(hidden, weight, targets.float()), "targets"),
        (lambda: linear_cross_entropy(hidden, weight, targets, torch.zeros(8)), "bias"),
        (lambda: linear_cross_entropy(hidden, weight, targets, label_smoothing=2), "smoothing"),
        (lambda: linear_cross_entropy(hidden, weight, targets, reduction="avg"), "reduction"),
        (lambda: linear_cross_entropy(hidden, weight, targets, implementation="x"), "choose one"),
        (
            lambda: linear_cross_entropy(
                hidden.double(), weight.double(), targets, implementation="triton"
            ),
            "no kernel for torch.float64",
        ),
        (lambda: flow_matching_loss(hidden, weight, None, hidden, hidden), "clean"),
        (
            lambda: flow_matching_loss(
                hidden, weight, None, torch.zeros(3, 9).requires_grad_(), torch.zeros(3, 9)
            ),
            "detach",
        ),
        (
            lambda: flow_matching_loss(
                hidden, weight, None, torch.zeros(3, 9), torch.zeros(3, 9), torch.ones(3)
            ),
            "mask",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_package_stands_alone() -> None:
    import subprocess
    import sys

    code = "import reca_kernels, sys; print(any(m.split('.')[0] == 'reca' for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert reca_kernels.__version__
