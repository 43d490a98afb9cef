"""BAGEL's attention over blocks: which keys are repeated, and that nothing else changes."""

import pytest
import torch
from torch.nn import functional as F

from reca.models.bagel import attention
from reca.models.bagel.attention import attend


def tensors():
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 5, 4, 8, generator=generator)
    k, v = torch.randn(2, 2, 7, 2, 8, generator=generator).unbind()
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[0, ..., -2:] = False  # the shorter prompt of a micro-batch
    return q, k, v, mask


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_shared_keys_are_repeated_where_a_mask_would_store_all_scores(masked, gpu, monkeypatch):
    """On a GPU, that is: on a CPU the recorded runs share them."""
    q, k, v, mask = tensors()
    wanted = attend(q, k, v, mask if masked else None)
    calls, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *given, **options: calls.append(options["enable_gqa"]) or plain(*given, **options),
    )
    monkeypatch.setattr(attention, "STORES_SCORES", {"cpu"} if gpu else {"cuda"})
    found = attend(q, k, v, mask if masked else None)
    assert calls == [not (masked and gpu)]
    torch.testing.assert_close(found, wanted)
