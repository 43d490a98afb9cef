"""The tiled product that the losses share writes its result and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import DEVICE, normal


@pytest.mark.parametrize("shape", [(5, 7, 9), (33, 40, 31), (64, 1, 32)])
def test_nothing_is_written_next_to_the_result(shape: tuple[int, int, int]) -> None:
    """The product writes into the middle of a larger tensor, whose rest must not change."""
    from reca_kernels.product import product as multiply

    m, n, k = shape
    around = torch.full((m + 6, n + 6), 77.0, device=DEVICE)
    a, b = normal(torch.float32, m, k), normal(torch.float32, k, n, seed=1)
    multiply(a, b, None, torch.ones(1, device=DEVICE), around[3 : m + 3, 3 : n + 3])
    torch.testing.assert_close(around[3 : m + 3, 3 : n + 3], a @ b)
    around[3 : m + 3, 3 : n + 3] = 77.0
    assert (around == 77.0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_is_scaled_as_torch_does_and_its_neighbours_are_not(dtype: torch.dtype) -> None:
    from reca_kernels.product import scaled_

    around = normal(dtype, 1200)
    for factor in (1.0, 0.3, float("nan")):
        expected, found = around.clone(), around.clone()
        given = torch.tensor(factor, device=DEVICE)
        expected[100:1100].mul_(given)
        scaled_(found[100:1100], given)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
