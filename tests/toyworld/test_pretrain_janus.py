"""What Janus-Pro's laptop base model is made of: the VQ model's loss, the tower's, the closed tokenizer."""

from __future__ import annotations

import pytest
import torch

from reca.core.rng import generator, numpy_generator
from reca.data.prompts import bank
from reca.models.checkpoint_io import save_safetensors
from reca.models.contract import Sampling, text_to_image_loss
from reca.models.janus.config import parse
from reca.models.janus.encoders import nearest, vision_tower, vq_model
from reca.models.janus.text import BEGIN, END, PAD
from reca.models.registry import load_model
from reca.toyworld.pretrain import janus
from reca.toyworld.pretrain.words import JANUS_MARKS, build_janus_tokenizer
from reca.toyworld.scenes import draw_scene
from reca.toyworld.text import dense_caption
from tests.models import janus_tiny


def test_the_vq_models_loss_falls_and_trains_codes():
    torch.manual_seed(0)
    config, _ = parse(janus_tiny.network())
    vq, images = vq_model(config), torch.rand(8, 3, 16, 16) * 2 - 1
    before = vq.quantize.embedding.weight.detach().clone()
    first = janus.vq_loss(vq, images)
    optimizer = torch.optim.Adam(vq.parameters(), 3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        janus.vq_loss(vq, images).backward()
        optimizer.step()
    assert janus.vq_loss(vq, images) < first
    assert all(weight.grad is not None for weight in vq.parameters())
    assert not torch.equal(vq.quantize.embedding.weight, before)
    with torch.no_grad():
        latents = vq.quant_conv(vq.encoder(images))
        codes = nearest(latents, vq.quantize.embedding.weight)
    assert len(set(codes.flatten().tolist())) > 4


def test_the_entropy_term_wants_sure_choices_of_every_code():
    sure = 2 * torch.eye(4).unsqueeze(0)
    same, unsure = sure[:, :1].expand(1, 4, 4), torch.zeros(1, 4, 4)
    found = [janus._entropy(scores) for scores in (sure, same, unsure)]
    assert found[0] < found[1] - 1 and found[0] < found[2] - 1


def test_the_towers_loss_sees_images_and_captions():
    config, _ = parse(janus_tiny.network())
    matcher = janus.build_matcher(config, words=20, end=19)
    pixels, ids = torch.rand(3, 3, 16, 16), torch.randint(0, 19, (3, 48))
    ids[:, -1] = 19
    matcher(pixels, ids).backward()
    unused = {n for n, weight in matcher.named_parameters() if weight.grad is None}
    assert not any("tower" in name for name in unused)


def test_the_tokenizer_has_janus_pros_marks():
    assert (PAD, BEGIN, END) == JANUS_MARKS
    tokenizer = build_janus_tokenizer(["describe the picture ."])
    spoken = f"<|User|>: describe two red circles\n\n<|Assistant|>:{BEGIN}"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(spoken)["input_ids"])
    assert tokens[:3] == ["<|User|>", ":", "describe"]
    assert tokens[-6:] == ["circle", "##s", "\n\n", "<|Assistant|>", ":", BEGIN]
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.bos_token_id != tokenizer.eos_token_id


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match="the world's vocabulary requires"):
        janus.assemble(janus_tiny.network(), prompts=[], seed=0, parts={}, out=tmp_path)


def test_parts_become_a_model_folder(tmp_path):
    """With the network's words: it reads a caption of the world, and samples an image of it."""
    prompts = bank("laptop")
    network = janus_tiny.network()
    network["llm"]["vocab_size"] = len(build_janus_tokenizer(prompts))
    config, _ = parse(network)
    torch.manual_seed(0)
    vq, tower = vq_model(config), vision_tower(config)
    for part, file, module in (("vq", janus.VQ_FILE, vq), ("vision", janus.TOWER_FILE, tower)):
        save_safetensors(module.state_dict(), tmp_path / part / file)
    parts = {part: tmp_path / part for part in janus.PARTS}
    janus.assemble(network, prompts=prompts, seed=0, parts=parts, out=tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert torch.equal(model.frozen.vqmodel.quantize.embedding.weight, vq.quantize.embedding.weight)
    features = model.encode(janus_tiny.pictures(1), "draw")
    caption = dense_caption(draw_scene(numpy_generator("assembled")))
    noise = model.sample_noise(1, generator("assembled"))
    assert torch.isfinite(text_to_image_loss(model, [caption], features, noise).total)
    condition = model.condition([caption])
    (image,) = model.generate(condition, None, Sampling(1.0, 16), [generator("image")])
    assert image.size == (16, 16)
