"""BAGEL's implementation of the contract: features, losses, trainable weights, generation, editing, answers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
import torch

from reca.core.rng import generator
from reca.models.bagel.config import parse
from reca.models.bagel.context import empty, extend, run_blocks, text_block, vit_block
from reca.models.bagel.layout import Split, pack
from reca.models.bagel.packed import PackInputs, run_pack
from reca.models.bagel.sampler import greedy, question_context
from reca.models.contract import Sampling, reconstruction_loss, text_to_image_loss
from tests.models import bagel_tiny as tiny

TEXTS = ["a red circle", "describe the image", "a blue square"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("words"))


def sample_noise(model, rows=3, seed=1):
    return model.sample_noise(rows, generator("bagel test", seed))


def noise(rows, name="noise"):
    return [generator(name, row) for row in range(rows)]


def pixels(image):
    return image.tobytes()


# ---- features ----------------------------------------------------------------------------------
def test_shapes_of_features(model):
    images = tiny.pictures(5)
    together = model.encode(images, "draw")
    assert {name: tuple(rows.shape) for name, rows in together.items()} == {
        "target": (5, 8, 4, 4),
        "understanding": (5, 4, 16),
        "grid": (5, 2),
    }


def test_pictures_that_are_not_square_are_drawn_from_their_middle(model):
    wide = tiny.pictures(1)[0].resize((40, 20))
    middle = wide.crop((10, 0, 30, 20))
    ours, theirs = model.encode([wide], "draw"), model.encode([middle], "draw")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pictures_of_several_shapes_are_read_in_one_batch(tmp_path):
    model = tiny.model(tmp_path)
    model.config.__dict__["read_size"] = replace(model.config.read_size, most=32, least=8)
    square, wide = tiny.pictures(1)[0], tiny.pictures(2)[1].resize((32, 16))
    both = model.encode([square, wide], "read")
    assert both["grid"].tolist() == [[2, 2], [2, 4]]
    for row, image in enumerate((square, wide)):
        alone = model.encode([image], "read")
        real = alone["understanding"].shape[1]
        found = both["understanding"][row, :real]
        torch.testing.assert_close(found, alone["understanding"][0], rtol=1e-5, atol=1e-5)
    answers = model.answer(["what there ?"] * 2, both, 4)
    assert answers[0] == model.answer(["what there ?"], model.encode([square], "read"), 4)[0]


def test_the_fingerprint_follows_weights_and_options(tmp_path):
    model = tiny.model(tmp_path)
    before = {use: model.encoder_fingerprint(use) for use in ("draw", "read")}
    assert before["draw"] != before["read"]
    with torch.no_grad():
        model.frozen.vae.get_parameter("encoder.conv_in.weight").add_(1)
    assert model.encoder_fingerprint("draw") != before["draw"]
    assert model.encoder_fingerprint("read") == before["read"]
    with torch.no_grad():
        model.network.llm2vae.weight.add_(1)  # trained: no part of any feature
    assert model.encoder_fingerprint("read") == before["read"]


# ---- losses ------------------------------------------------------------------------------------
def test_two_phases_equal_the_packed_pass(tmp_path):
    model = tiny.model(tmp_path)
    features, drawn = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    drawn = replace(drawn, text_dropout=torch.tensor([0.05, 0.5, 0.5]))  # the first is dropped
    found = {}
    for step in ("two_phase", "packed"):
        model.options = replace(model.options, step=step)
        model.zero_grad(set_to_none=True)
        loss = reconstruction_loss(model, TEXTS, features, drawn)
        loss.total.backward()
        gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
        found[step] = (loss, gradients)
    (ours, own), (theirs, packed) = found["two_phase"], found["packed"]
    assert ours.count == theirs.count == drawn.count == 12 // 3 * 3 * 1
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-5, atol=1e-5)
    assert set(own) == set(packed)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, packed[name], rtol=1e-3, atol=1e-5)


def test_a_context_costs_only_what_its_keys_and_values_need(model):
    network = model.network
    features = model.encode(tiny.pictures(2), "draw")
    texts = text_block(network, model.text.ids(TEXTS[:2]))
    blocks = [vit_block(network, features["understanding"], features["grid"]), texts]
    ran = []
    with torch.no_grad(), ExitStack() as hooks:
        whole, _ = run_blocks(network, empty(network, 2), blocks, frozen=True)
        for number, layer in enumerate(network.decoder.layers):
            for name in ("mlp", "mlp_moe_gen"):
                note = partial(lambda at, *_: ran.append(at), (number, name))
                hooks.enter_context(layer._modules[name].register_forward_hook(note))
        cached = extend(network, empty(network, 2), blocks, frozen=True)
    assert ran == [(number, "mlp") for number in range(len(network.decoder.layers) - 1)]
    for found, wanted in zip(cached.kept, whole.kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(cached.valid, whole.valid) and torch.equal(cached.position, whole.position)


def test_the_condition_matters_and_text_can_be_dropped(model):
    features, drawn = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    kept = replace(drawn, text_dropout=torch.ones(3))
    dropped = replace(drawn, text_dropout=torch.zeros(3))
    told = text_to_image_loss(model, TEXTS, features, kept).total
    other = text_to_image_loss(model, TEXTS[::-1], features, kept).total
    silent = [text_to_image_loss(model, t, features, dropped).total for t in (TEXTS, TEXTS[::-1])]
    assert told != other and torch.equal(*silent)
    seen = reconstruction_loss(model, TEXTS, features, dropped).total
    assert seen != silent[0]  # the picture is never dropped


def test_a_rank_whose_captions_are_all_dropped_runs_the_prefix_as_the_others_do(model, monkeypatch):
    """Sharded layers are gathered by all ranks together: one that leaves out a pass stops the others."""
    features = model.encode(tiny.pictures(3), "draw")
    dropped = replace(sample_noise(model), text_dropout=torch.zeros(3))
    alone = text_to_image_loss(model, TEXTS, features, dropped).total
    layer, ran = model.network.decoder.layers[0], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    hook = layer.register_forward_hook(lambda *_: ran.append(1))
    sharded = text_to_image_loss(model, TEXTS, features, dropped).total
    hook.remove()
    assert len(ran) == 2  # the prefix and the image
    torch.testing.assert_close(sharded, alone)


def test_templates_can_be_dropped_more_often_than_captions(tmp_path):
    model = tiny.model(tmp_path, template_dropout=1.0)
    features, drawn = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    kept = replace(drawn, text_dropout=torch.full((3,), 0.5))
    seen = [reconstruction_loss(model, t, features, kept).total for t in (TEXTS, TEXTS[::-1])]
    told = [text_to_image_loss(model, t, features, kept).total for t in (TEXTS, TEXTS[::-1])]
    assert torch.equal(*seen) and told[0] != told[1]


def test_freezing_can_be_lifted(tmp_path):
    model = tiny.model(tmp_path, freeze_und=False, step="packed")
    features = model.encode(tiny.pictures(3), "draw")
    reconstruction_loss(model, TEXTS, features, sample_noise(model)).mean.backward()
    assert model.network.connector.fc1.weight.grad is not None
    assert "network.connector.fc1.weight" in model.trainable_parameters()


def test_the_vae_condition_of_the_ablation(tmp_path):
    model = tiny.model(tmp_path, condition="vae", step="packed")
    features, drawn = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    assert features["understanding"].shape == (3, 8, 4, 4) and "grid" not in features
    loss = reconstruction_loss(model, TEXTS, features, drawn)
    assert loss.count == drawn.count  # the clean tokens carry none
    loss.mean.backward()
    other = replace(drawn, condition=drawn.condition + 1)
    assert reconstruction_loss(model, TEXTS, features, other).total != loss.total


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_und": False}, "step: packed"),
        ({"condition": "vae"}, "step: packed"),
        ({"step": "three_phase"}, "one of two_phase, packed"),
        ({"text_dropout": 2}, "network.options.text_dropout = 2: must be at most 1"),
        ({"speed": 1}, "speed = 1: unknown key"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.model(tmp_path, **options)


def test_a_condition_of_latents_is_a_whole_number_of_patches():
    network = tiny.network(condition="vae", step="packed")
    parse({**network, "condition_resolution": 16})
    with pytest.raises(ValueError, match=r"condition_resolution is 18; it must be a multiple of 8"):
        parse({**network, "condition_resolution": 18})


def test_answer_loss_covers_answers_and_ends(model):
    turns = [[("what there ?", "a red circle")], [("how many ?", "one"), ("what there ?", "a")]]
    conversation = model.conversation(turns)
    assert conversation.count == (3 + 1) + (1 + 1) + (1 + 1)
    features = model.encode(tiny.pictures(2), "read")
    both = model.answer_loss(conversation, features)
    assert both.count == conversation.count
    alone = [
        model.answer_loss(model.conversation([one]), {k: v[i : i + 1] for k, v in features.items()})
        for i, one in enumerate(turns)
    ]
    torch.testing.assert_close(both.total, alone[0].total + alone[1].total, rtol=1e-5, atol=1e-5)
    assert model.answer_loss(conversation, None).total != both.total


def test_a_word_outside_the_vocabulary_is_named(model):
    with pytest.raises(ValueError, match="'a zebra'"):
        model.condition(["a zebra"])


# ---- inference ---------------------------------------------------------------------------------
SAMPLING = Sampling(guidance=3.0, steps=4)


def test_guidance_and_noise_change_pictures(model):
    condition = model.condition(["a red circle"])

    def drawn(sampling, name="noise"):
        return pixels(model.generate(condition, None, sampling, noise(1, name))[0])

    assert drawn(SAMPLING) == drawn(SAMPLING)
    assert drawn(SAMPLING) != drawn(replace(SAMPLING, guidance=1.0))
    assert drawn(SAMPLING) != drawn(SAMPLING, "other")
    off = replace(SAMPLING, guidance=1.0)
    assert drawn(off) == drawn(replace(off, guidance=0.0))  # 1 and less: none


def test_reconstruction_with_both_guidances(model):
    features = model.encode(tiny.pictures(2), "draw")
    condition = model.condition(TEXTS[:2], features)
    extra = {"image_guidance": 2.0, "renormalise": "text_channel", "renorm_min": 1.0}
    plain = model.generate(condition, None, SAMPLING, noise(2))
    pushed = model.generate(condition, None, replace(SAMPLING, options=extra), noise(2))
    assert [pixels(i) for i in plain] != [pixels(i) for i in pushed]


def test_editing_rows_of_several_sizes(model):
    images = [*tiny.pictures(2), tiny.pictures(3)[2].resize((32, 16))]
    sampling = replace(SAMPLING, options={"image_guidance": 1.5, "renormalise": "text_channel"})
    found = model.edit(images, TEXTS, sampling, noise(3))
    assert [image.size for image in found] == [(16, 16), (16, 16), (16, 8)]
    again = model.edit(images[2:], TEXTS[2:], sampling, [generator("noise", 2)])
    assert pixels(again[0]) == pixels(found[2])
    other = model.edit(images[1:2], TEXTS[1:2], sampling, [generator("noise", 0)])
    assert pixels(other[0]) != pixels(found[0])
    with pytest.raises(ValueError, match="one of each per edit"):
        model.edit(images, TEXTS[:1], sampling, noise(3))
    with pytest.raises(ValueError, match="think is not supported for edits"):
        model.edit(images, TEXTS, replace(SAMPLING, options={"think": True}), noise(3))


def test_thinking_puts_a_thought_before_the_picture(tmp_path, monkeypatch):
    from reca.models.bagel import sampler

    model = tiny.model(tmp_path)
    monkeypatch.setattr(sampler, "THINK_TO_DRAW", "describe the image")
    sampling = replace(SAMPLING, options={"think": True, "think_tokens": 3})
    condition = model.condition(["a red circle"])
    (full, without), thoughts = sampler.thinking_contexts(model, condition, 3)
    asked = 2 + 3 + 2 + 3  # the system prompt and the prompt, each framed
    words = len(model.text.ids(thoughts)[0])
    assert int(full.position) == asked + words + 2 and int(without.position) == 5
    thinking = model.generate(condition, None, sampling, noise(1))
    assert pixels(thinking[0]) != pixels(model.generate(condition, None, SAMPLING, noise(1))[0])


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(2.0, 1), "at least 2"),
        (Sampling(2.0, 4, 0.5), "has none"),
        (
            Sampling(2.0, 4, options={"order": "random"}),
            "options.order = .*: unknown option; allowed: ",
        ),
        (Sampling(2.0, 4, options={"renormalise": "local"}), "global, channel, text_channel"),
        (
            Sampling(2.0, 4, options={"interval": [0.1]}),
            r"sampling.options.interval = \[.*\]: must be a list of 2, each a number",
        ),
        (Sampling(2.0, 4, options={"think": "yes"}), "true or false"),
    ],
)
def test_sampling_that_bagel_does_not_know(model, sampling, said):
    with pytest.raises(ValueError, match=said):
        model.generate(model.condition(["a"]), None, sampling, noise(1))


# ---- answers about several pictures --------------------------------------------------------------
ASKED = ["what there ?", "how many circle ?"]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A model that reads pictures of two shapes, and two rows of three pictures each, of other shapes in each row."""
    model = tiny.model(tmp_path_factory.mktemp("words"))
    model.config.__dict__["read_size"] = replace(model.config.read_size, most=32, least=8)
    one, two, three, four, five, six = tiny.pictures(6)
    wide, high = (32, 16), (16, 32)
    rows = [[one, two.resize(wide), three], [four.resize(high), five, six.resize(wide)]]
    return model, rows


def logits_of(model, rows, questions=ASKED, tokens=3):
    """Logits [n, V] of each row's answer, and its ids."""
    pictures = [model.encode(list(column), "read") for column in zip(*rows, strict=True)]
    with torch.no_grad():
        context = question_context(model.network, model.text.ids(questions), pictures)
        steps, ids = zip(*greedy(model.network, context, tokens), strict=True)
    return torch.stack(steps, dim=1), torch.stack(ids, dim=1).tolist()


def packed_logits(model, images, question, answer):
    """The reference: [ViT pictures][question][answer] as the splits of one pack, under the mask of bagel.md 2."""
    read = [model.encode([image], "read") for image in images]
    splits = [Split("vit", grid=tuple(one["grid"][0].tolist())) for one in read]
    splits += [Split("text", tuple(ids)) for ids in (*model.text.ids([question]), answer)]
    config = model.config
    packed = pack([splits], config.special, config.vit_max_num_patch_per_side, config.max_latent_size)  # fmt: skip
    seen = torch.cat([one["understanding"][0] for one in read])
    inputs = PackInputs(seen, torch.zeros(0, config.latent_width), torch.zeros(0))
    with torch.no_grad():
        states = run_pack(model.network, packed, inputs, frozen=True)
        return model.network.logits(states.text[-len(answer) - 2 : -2])


def test_several_pictures_are_read_as_in_one_pack_whatever_the_neighbours(several):
    model, rows = several
    found, ids = logits_of(model, rows)
    for row, images in enumerate(rows):
        answer = ids[row]
        alone = packed_logits(model, images, ASKED[row], answer)
        torch.testing.assert_close(found[row, : len(answer)], alone, rtol=1e-4, atol=1e-5)
        given = model.answer_about(
            ASKED[row : row + 1], [model.encode([image], "read") for image in images], 3
        )
        assert given == [model.text.decoded(answer)]


def test_every_picture_and_their_order_count(several):
    model, rows = several
    images, question = rows[0], ASKED[:1]
    base, _ = logits_of(model, [images], question, 1)
    other = tiny.pictures(7)[6]
    for place in range(len(images)):
        changed = [other if k == place else image for k, image in enumerate(images)]
        assert (logits_of(model, [changed], question, 1)[0] - base).abs().max() > 1e-3
    turned, _ = logits_of(model, [images[::-1]], question, 1)
    assert (turned - base).abs().max() > 1e-3
    assert (logits_of(model, [images[:1]], question, 1)[0] - base).abs().max() > 1e-3


def test_one_picture_is_a_list_of_one(several):
    model, rows = several
    features = model.encode([row[0] for row in rows], "read")
    assert model.answer_about(ASKED, [features], 4) == model.answer(ASKED, features, 4)
    assert model.answer_about(ASKED, [], 4) == model.answer(ASKED, None, 4)
