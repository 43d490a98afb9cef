"""Preparing images in threads: the same tensors, in order, and errors of single images."""

import threading

import pytest
import torch
from PIL import Image

from reca.core.images import to_tensor
from reca.models.common import batching
from reca.models.common.batching import prepare_each, with_targets
from reca.models.common.tokenizer import IGNORE


def images(side):
    return [Image.effect_mandelbrot((side, side + at), (-2, -1, 1, 1), 9) for at in range(5)]


@pytest.mark.parametrize(("side", "threaded"), [(16, False), (256, True)])
def test_large_images_are_prepared_in_threads_in_order(side, threaded, monkeypatch):
    monkeypatch.setattr(batching.os, "sched_getaffinity", lambda _: {0, 1, 2})
    names, barrier = set(), threading.Barrier(3)

    def prepare(image):
        if threaded and image.height < side + 3:
            barrier.wait(5)  # three run at once
        names.add(threading.current_thread().name)
        return to_tensor(image)

    found = prepare_each(prepare, images(side))
    assert [tensor.shape[1] for tensor in found] == [side + at for at in range(5)]
    assert all(map(torch.equal, found, map(to_tensor, images(side))))
    assert (threading.current_thread().name not in names) == threaded


def test_an_error_of_one_image_comes_out(monkeypatch):
    monkeypatch.setattr(batching.os, "sched_getaffinity", lambda _: {0, 1})

    def prepare(image):
        if image.height == 258:
            raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        prepare_each(prepare, images(256))
    assert prepare_each(prepare, []) == []


def test_states_are_chosen_by_their_targets():
    states = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    targets = torch.tensor([[IGNORE, 4, IGNORE], [7, IGNORE, 5]])
    said, chosen = with_targets(states, targets)
    assert torch.equal(said, states.detach()[[0, 1, 1], [1, 0, 2]])
    assert chosen.tolist() == [4, 7, 5]
    said.sum().backward()
    assert torch.equal(states.grad[..., 0], (targets != IGNORE).float())
