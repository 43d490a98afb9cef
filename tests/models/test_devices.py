"""The rest of the package on a device that is not the CPU, one in name only: the cache, answers, edits, thoughts.

The contract itself is checked there by the conformance suite (`device_moves`).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reca.conformance.other_device import DEVICE, GpuInName, OnDevice, moved
from reca.features import build as cache
from reca.inference.generate import answers, draw
from reca.inference.items import Question
from reca.models.contract import ReadsSeveral, Sampling
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny
from tests.toy_model import CODE, Pictures

MODELS = {
    "showo": lambda folder: showo_tiny.model(folder, implementation="torch"),
    "showo_vq": lambda folder: showo_tiny.model(folder, "vq", implementation="torch"),
    "harmon": lambda folder: harmon_tiny.model(folder, implementation="torch"),
    "harmon_frozen": lambda folder: harmon_tiny.model(
        folder, implementation="torch", frozen_condition=True
    ),
    "openuni": lambda folder: openuni_tiny.model(folder, implementation="torch"),
    "openuni_noisy": lambda folder: openuni_tiny.model(
        folder, implementation="torch", step="one_pass", stochastic_depth=True
    ),
    "janus": lambda folder: janus_tiny.model(folder, implementation="torch"),
    "bagel": lambda folder: bagel_tiny.model(folder, implementation="torch"),
    "bagel_packed": lambda folder: bagel_tiny.model(folder, implementation="torch", step="packed"),
    "bagel_vae": lambda folder: bagel_tiny.model(
        folder, implementation="torch", step="packed", condition="vae"
    ),
}
PICTURES = bagel_tiny.pictures(2)
TEXTS = ["describe the image", "describe image"]
CAPTIONS = ["a red circle", "two blue circles left of the square"]
QUESTIONS = ["what this ?", "how many blue circles are there ?"]


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """The same model on the CPU and on the other device."""
    here, there = (MODELS[request.param](tmp_path / "words") for _ in range(2))
    with GpuInName(), torch.no_grad():
        yield here, moved(there)


def same(found, expected):
    assert isinstance(found, OnDevice)
    torch.testing.assert_close(found.here, expected, rtol=1e-4, atol=1e-5)


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def uses(model):
    return ("draw", "read", "edit") if model.family == "bagel" else ("draw", "read")


def test_mixed_tensors_are_refused_as_on_a_gpu():
    there = OnDevice(torch.ones(2))
    with GpuInName():
        for wrong in (lambda: there + torch.ones(2), lambda: torch.cat([there, torch.ones(2)])):
            with pytest.raises(RuntimeError, match="expected all tensors on cuda"):
                wrong()
        with pytest.raises(TypeError, match="bring it to the CPU"):
            there.numpy()
        assert (there + 1).device == torch.arange(2, device="cuda").device == DEVICE
        assert torch.equal((there + torch.tensor(1.0)).cpu(), torch.full((2,), 2.0))


def test_the_cache(pair, tmp_path):
    here, there = pair
    for use in uses(here):
        made, expected = (
            cache.build(m, Pictures(3), tmp_path / f"{use}-{at}", use=use, code=CODE, batch_size=2)
            for at, m in enumerate((there, here))
        )
        for name, rows in expected.rows([2, 0]).items():
            torch.testing.assert_close(made.rows([2, 0])[name], rows, rtol=1e-4, atol=1e-5)


def test_answers_with_and_without_pictures(pair):
    here, there = pair
    images = dict(zip("ab", PICTURES, strict=True))
    asked = [
        Question(str(i), name, text, "", "kind")
        for i, (text, name) in enumerate(zip([*QUESTIONS, QUESTIONS[0]], "aba", strict=True))
    ]
    assert answers(there, asked, images, max_new_tokens=4) == answers(
        here, asked, images, max_new_tokens=4
    )
    if isinstance(here, ReadsSeveral):
        read = [m.encode(PICTURES, "read") for m in pair]
        assert there.answer_about(QUESTIONS, [read[1]] * 2, 4) == here.answer_about(
            QUESTIONS, [read[0]] * 2, 4
        )


@pytest.mark.parametrize("think", [False, True])
def test_bagel_edits_and_thinks(tmp_path, think, monkeypatch):
    monkeypatch.setattr("reca.models.bagel.sampler.THINK_TO_DRAW", TEXTS[0])  # known words
    here, there = (MODELS["bagel"](tmp_path / "words") for _ in range(2))
    plan = Sampling(4.0, 3, options={"image_guidance": 1.5, "renormalise": "text_channel"})
    with GpuInName(), torch.no_grad():
        moved(there)
        if think:
            plan = Sampling(4.0, 3, options={"think": True, "think_tokens": 3})
            made = [pixels(draw(m, CAPTIONS, None, plan, generators())) for m in (here, there)]
        else:
            made = [pixels(m.edit(PICTURES, TEXTS, plan, generators())) for m in (here, there)]
            features = here.encode(PICTURES, "edit")
            given = {name: tensor.to("cuda") for name, tensor in features.items()}
            noise = here.sample_edit_noise(2, torch.Generator().manual_seed(1))
            expected = here.edit_loss(features, features, TEXTS, noise)
            same(there.edit_loss(given, given, TEXTS, noise).total, expected.total)
    assert np.abs(made[0] - made[1]).max() <= 1
