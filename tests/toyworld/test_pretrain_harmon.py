"""What Harmon's laptop base model is made of: the VAE's loss, standardised latents, the chat tokenizer."""

from __future__ import annotations

import pytest
import torch

from reca.models.harmon.encoders import build_vae
from reca.toyworld.pretrain.harmon import assemble, standardise, vae_loss
from reca.toyworld.pretrain.words import build_chat_tokenizer
from tests.models import harmon_tiny
from tests.reference.harmon_config import config_of


def vae():
    described = harmon_tiny.network()
    del described["options"]
    torch.manual_seed(0)
    return build_vae(config_of(described))


def test_standardising_changes_no_picture():
    model, images = vae(), torch.rand(24, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        model.quant_conv.bias.add_(torch.randn(8))
        before, before_log_variance = model.moments(images)
        decoded = model.decode(before)
    standardise(model, images)
    with torch.no_grad():
        behind, behind_log_variance = model.moments(images)
        again = model.decode(behind)
    assert torch.allclose(decoded, again, atol=1e-4)
    assert torch.allclose(behind.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(behind.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    spread = before.std(dim=(0, 2, 3)).view(1, -1, 1, 1)
    deviations = [(0.5 * v).exp() for v in (behind_log_variance, before_log_variance)]
    assert torch.allclose(deviations[0] * spread, deviations[1], rtol=1e-3)


def test_the_vaes_loss_falls_and_depends_on_its_noise():
    model, images = vae(), torch.rand(8, 3, 16, 16) * 2 - 1
    quiet, loud = torch.zeros(8, 4, 4, 4), torch.ones(8, 4, 4, 4)
    first = vae_loss(model, images, quiet)
    assert vae_loss(model, images, loud) != first
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        vae_loss(model, images, quiet).backward()
        optimizer.step()
    assert vae_loss(model, images, quiet) < first


def test_chat_tokenizer_has_newlines_and_marks():
    tokenizer = build_chat_tokenizer(["describe the picture ."])
    spoken = "<|im_start|>user\n\ndescribe two red circles<|im_end|>\n"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(spoken)["input_ids"])
    assert tokens[:4] == ["<|im_start|>", "user", "\n\n", "describe"]
    assert tokens[-4:] == ["circle", "##s", "<|im_end|>", "\n"]
    assert tokenizer.decode(tokenizer("two red circles")["input_ids"]) == "two red circles"


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match="the world's vocabulary requires"):
        assemble(harmon_tiny.network(), prompts=[], seed=0, parts={}, out=tmp_path)
