"""OpenUni behind the contract: features, losses, what is trained, sampling, answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from reca.core.rng import generator
from reca.models.contract import (
    ReadsSeveral,
    Sampling,
    reconstruction_loss,
    text_to_image_loss,
)
from reca.models.openuni import layout, sampler
from reca.models.openuni.batch import Condition
from reca.models.openuni.encoders import prepared
from reca.models.openuni.loss import with_dropped_texts
from tests.models import openuni_tiny as tiny

TEXTS = ["a red circle", "describe the image", "a blue square"]
QUESTIONS = ["what there ?", "how many ?"]
SAMPLING = Sampling(guidance=3.0, steps=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("words"))


def sample_noise(model, rows=3, seed=1):
    return model.sample_noise(rows, generator("openuni test", seed))


def noise(rows, name="noise"):
    return [generator(name, row) for row in range(rows)]


def test_frozen_weights_in_bf16_keep_the_rotary_frequencies_exact(tmp_path):
    """Frequencies in bf16 turn the queries, at positions of some hundreds, by half a radian."""
    network = tiny.model(tmp_path, frozen_dtype="bfloat16").network
    exact = tiny.model(tmp_path).network
    assert all(weight.dtype == torch.bfloat16 for weight in network.lmm.parameters())
    buffers = {name: b for name, b in exact.lmm.named_buffers() if b.is_floating_point()}
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in buffers.items():
        assert torch.equal(network.lmm.get_buffer(name), buffer), name


def levels(image):
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


# ---- features ----------------------------------------------------------------------------------
def test_shapes_of_features(model):
    images = tiny.pictures(5)
    shapes = {name: tuple(rows.shape) for name, rows in model.encode(images, "draw").items()}
    assert shapes == {"target": (5, 4, 4, 4), "understanding": (5, 4, 32)}
    assert list(model.encode(images, "read")) == ["understanding"]


def test_seeded_crops_depend_on_the_image_alone():
    wide = tiny.pictures(1)[0].resize((64, 16))
    found = {crop: prepared(wide, 16, crop).tobytes() for crop in ("seeded", "centre", "stretch")}
    assert found["seeded"] == prepared(wide.copy(), 16, "seeded").tobytes()
    assert len(set(found.values())) == 3
    places = {
        prepared(image.resize((64, 16)), 16, "seeded").tobytes() for image in tiny.pictures(8)
    }
    centres = {
        prepared(image.resize((64, 16)), 16, "centre").tobytes() for image in tiny.pictures(8)
    }
    assert len(places) == 8 and not places & centres


def test_the_fingerprint_follows_weights_and_options(tmp_path):
    model = tiny.model(tmp_path)
    before = {use: model.encoder_fingerprint(use) for use in ("draw", "read")}
    assert before["draw"] != before["read"]
    with torch.no_grad():
        next(model.frozen.vae.parameters()).add_(1)
        model.network.meta_queries.add_(1)  # trained: no part of any feature
    assert model.encoder_fingerprint("draw") != before["draw"]
    assert model.encoder_fingerprint("read") == before["read"]
    other = tiny.model(tmp_path, crop="centre")
    assert other.encoder_fingerprint("draw") != before["draw"]
    assert other.encoder_fingerprint("read") == before["read"]


# ---- losses ------------------------------------------------------------------------------------
def test_two_phases_equal_one_pass_for_prompts_of_mixed_lengths(tmp_path):
    model = tiny.model(tmp_path)
    features, sampled = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    found = {}
    for step, recompute in (("two_phase", True), ("two_phase", False), ("one_pass", True)):
        model.options = replace(model.options, step=step, recompute=recompute)
        for loss in (reconstruction_loss, text_to_image_loss):
            model.zero_grad(set_to_none=True)
            value = loss(model, TEXTS, features, sampled)
            value.total.backward()
            gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
            found[step, recompute, loss] = (value, gradients)
    for (*_, loss), (ours, own) in found.items():
        theirs, other = found["one_pass", True, loss]
        assert ours.count == theirs.count == sampled.count == 3 * 16
        torch.testing.assert_close(ours.total, theirs.total, rtol=1e-5, atol=1e-5)
        assert set(own) == set(other) == set(model.trainable_parameters())
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model):
    features, sampled = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    sampled = replace(sampled, text_dropout=torch.ones(3))
    together = text_to_image_loss(model, TEXTS, features, sampled).total
    alone = []
    for row, text in enumerate(TEXTS):
        one = slice(row, row + 1)
        own = replace(sampled, uniform=sampled.uniform[one], gaussian=sampled.gaussian[one],
                      text_dropout=torch.ones(1))  # fmt: skip
        rows = {name: tensor[one] for name, tensor in features.items()}
        alone.append(text_to_image_loss(model, [text], rows, own).total)
    torch.testing.assert_close(sum(alone), together, rtol=1e-4, atol=1e-4)


def test_captions_are_dropped_and_images_never_are(model):
    features, sampled = model.encode(tiny.pictures(3), "draw"), sample_noise(model)
    kept, dropped = (replace(sampled, text_dropout=torch.full((3,), x)) for x in (1.0, 0.0))
    with_caption = text_to_image_loss(model, TEXTS, features, kept).total
    silent = [text_to_image_loss(model, t, features, dropped).total for t in (TEXTS, TEXTS[::-1])]
    assert with_caption != silent[0] and torch.equal(*silent)
    read = [reconstruction_loss(model, TEXTS, features, n).total for n in (kept, dropped)]
    assert torch.equal(*read) and read[0] != silent[0]


def test_long_captions_are_cut_in_training_as_published_or_before_the_header(model):
    rows = [model.text.caption("a red circle " * 8), model.text.caption("a")]
    sampled = replace(sample_noise(model, 2), text_dropout=torch.ones(2))
    options = replace(model.options, max_prompt=12)
    cut = with_dropped_texts(Condition(rows), sampled, options).texts
    assert list(cut[0]) == rows[0][:12] and list(cut[1]) == rows[1][:12]
    kept = with_dropped_texts(Condition(rows), sampled, replace(options, keep_header=True)).texts
    assert len(kept[0]) == 12 and list(kept[0][-6:]) == rows[0][-6:]
    whole = Condition(rows, understanding=torch.zeros(2, 4, 32))
    assert with_dropped_texts(whole, sampled, options) is whole


def test_stochastic_depth_reads_anew_in_training_alone(tmp_path):
    plain, noisy = tiny.model(tmp_path), tiny.model(tmp_path, stochastic_depth=True)
    noisy.config.vit.__dict__["drop_path_rate"] = 0.9
    images = tiny.pictures(3)
    features = noisy.encode(images, "draw")
    assert {name: tuple(rows.shape[1:]) for name, rows in features.items()} == {
        "target": (4, 4, 4), "pixels": (3, 16, 16),
    }  # fmt: skip
    sampled, expected = sample_noise(noisy), sample_noise(plain)
    assert sampled.depth.shape == (2, 2, 3) and expected.depth is None
    assert torch.equal(sampled.gaussian, expected.gaussian)
    clean = reconstruction_loss(plain, TEXTS, plain.encode(images, "draw"), expected).total
    everything = replace(sampled, depth=torch.ones_like(sampled.depth))
    nothing = replace(sampled, depth=torch.zeros_like(sampled.depth))
    losses = [reconstruction_loss(noisy, TEXTS, features, n).total for n in (everything, nothing)]
    assert losses[0] != losses[1] and clean not in losses  # kept branches are scaled up
    ours, theirs = (
        m.generate(m.condition(TEXTS, m.encode(images, "draw")), None, SAMPLING, noise(3))
        for m in (noisy, plain)
    )
    assert all(
        int((levels(a) - levels(b)).abs().max()) <= 1 for a, b in zip(ours, theirs, strict=True)
    )
    assert noisy.encoder_fingerprint("draw") != plain.encoder_fingerprint("draw")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": "packed"}, "one of two_phase, one_pass"),
        ({"text_dropout": 2}, "at most 1"),
        ({"max_prompt": 6}, "takes 6 tokens"),
        ({"timestep_shift": 0}, "above 0"),
        ({"speed": 1}, "speed = 1: unknown key"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.model(tmp_path, **options)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("sana", {"cross_attention_head_dim": 12}, "are not the width 32"),
        ("vit", {"patch_size": 5}, "not a multiple of 2 patches"),
        ("llm", {"num_key_value_heads": 3}, "must divide network.llm.num_attention_heads = 4"),
        ("vae", {"latent_channels": 5}, "does not divide the last level"),
        ("vae", {"encoder_layers": [1]}, "one entry for each level"),
        ("special", {"end": 10_000}, "is no token id"),
    ],
)
def test_sizes_that_do_not_go_together(part, change, said):
    from reca.models.openuni.config import parse

    section = tiny.network()
    section[part] = section[part] | change
    with pytest.raises(ValueError, match=said):
        parse(section)


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
    text = model.conversation(turns, with_image=False)
    assert model.answer_loss(text, None).total != both.total


def test_the_layout(model):
    special, image = model.config.special, [model.config.special.image] * 4
    row = model.text.reconstruction("describe the image")
    start = row.index(special.image_start)
    assert start == 3 and row[4:8] == image and row[8] == special.image_end
    assert row[-1] == special.image_start and row[-6] == special.end
    asked = model.text.question("what there ?", 2, "system")
    assert asked.count(special.image) == 8 and asked[-1] != special.image_start
    assert layout.positions(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 1]])).tolist() == [
        [0, 0, 0, 1], [0, 1, 1, 2],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="4 places for image tokens, the images 8"):
        model.network.embed(torch.tensor([row]), torch.zeros(1, 8, 32))
    with pytest.raises(ValueError, match="'zebra'"):
        model.condition(["a zebra"])


# ---- training ----------------------------------------------------------------------------------
class Rows:
    def __init__(self, features):
        self.features = features

    def __len__(self):
        return len(self.features["target"])

    def rows(self, indices):
        return {name: rows[list(indices)] for name, rows in self.features.items()}


def test_alignment_leaves_reading_bitwise_as_it_was(tmp_path):
    """RecA changes queries, connector, projector and SANA; features and answers are equal to the last bit."""
    from reca.align.batches import FeatureData

    model = tiny.model(tmp_path / "words")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    features = {use: model.encode(tiny.pictures(6), use) for use in ("draw", "read")}
    rows = [model.text.question(q) for q in QUESTIONS]
    seen = features["read"]["understanding"][:2]
    logits = [step[0].clone() for step in sampler.greedy(model.network, rows, seen, 5)]
    answers = model.answer(QUESTIONS, {"understanding": seen}, 5)
    data = FeatureData(draw=Rows(features["draw"]), prompts=TEXTS)
    recipe = Recipe(tasks={"reca": TaskRecipe(1.0, 3)}, steps=3, lr=1e-2, weight_decay=0.0)
    summary = align(model, data, recipe, seed=0, work_dir=tmp_path / "work", device="cpu")
    assert summary.steps == 3
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert changed and changed <= set(model.trainable_parameters())
    for use, found in features.items():
        again = model.encode(tiny.pictures(6), use)
        assert all(torch.equal(again[name], rows) for name, rows in found.items())
    after = [step[0] for step in sampler.greedy(model.network, rows, seen, 5)]
    assert len(after) == len(logits) and all(map(torch.equal, after, logits))
    assert model.answer(QUESTIONS, {"understanding": seen}, 5) == answers


# ---- inference ---------------------------------------------------------------------------------
def test_guidance_needs_an_unconditional_condition(model):
    with pytest.raises(ValueError, match="needs an unconditional condition"):
        model.generate(model.condition(TEXTS), None, SAMPLING, noise(3))


def test_guidance_and_noise_change_images(model):
    condition, plain = model.condition(["a red circle"]), model.unconditional(1)

    def drawn(sampling, name="noise"):
        return model.generate(condition, plain, sampling, noise(1, name))[0].tobytes()

    assert drawn(SAMPLING) == drawn(SAMPLING)
    assert drawn(SAMPLING) != drawn(replace(SAMPLING, guidance=1.0))
    assert drawn(SAMPLING) != drawn(SAMPLING, "other")
    assert drawn(SAMPLING) != drawn(replace(SAMPLING, options={"flow_shift": 1.0}))
    off = replace(SAMPLING, guidance=1.0)
    assert drawn(off) == drawn(replace(off, guidance=0.0))


def test_the_unconditional_branch_is_encoded_once_until_a_weight_changes(tmp_path, monkeypatch):
    model = tiny.model(tmp_path)
    calls, original = [], sampler.conditions

    def counted(network, options, condition, depth=None):
        calls.append(len(condition))
        return original(network, options, condition, depth)

    monkeypatch.setattr(sampler, "conditions", counted)
    texts = ["a red circle", "a", "a red circle", "a red circle"]
    for _ in range(2):
        model.generate(model.condition(texts), model.unconditional(4), SAMPLING, noise(4))
    assert calls == [2, 1, 2]  # distinct captions, and once the branch without one
    with torch.no_grad():
        model.network.meta_queries.add_(1)
    model.generate(model.condition(texts), model.unconditional(4), SAMPLING, noise(4))
    assert calls[3:] == [2, 1]


def test_reconstruction_keeps_the_image_in_both_branches(model):
    features = model.encode(tiny.pictures(2), "draw")
    condition = model.condition(TEXTS[:2], features)
    assert list(condition.negative) == model.text.reconstruction("Keep the image as it is.")
    guided = model.generate(condition, None, SAMPLING, noise(2))
    other = model.generate(condition, model.unconditional(2), SAMPLING, noise(2))
    assert [i.tobytes() for i in guided] == [i.tobytes() for i in other]
    swapped = model.condition(TEXTS[:2], {k: v.flip(0) for k, v in features.items()})
    assert model.generate(swapped, None, SAMPLING, noise(2))[0].tobytes() != guided[0].tobytes()


def test_answers_about_several_images(model):
    assert isinstance(model, ReadsSeveral)
    pictures = [model.encode(tiny.pictures(k + 2)[k:], "read") for k in (0, 2)]
    assert len(model.answer_about(QUESTIONS, pictures, 4)) == 2


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (replace(SAMPLING, temperature=0.5), "a flow has none"),
        (replace(SAMPLING, options={"flow_shift": 0.0}), "above 0"),
        (replace(SAMPLING, options={"shift": 1.0}), "shift = 1.0: unknown option"),
    ],
)
def test_sampling_that_cannot_work_is_refused_before_a_run(model, sampling, said):
    with pytest.raises(ValueError, match=said):
        model.check_sampling(sampling)
    model.check_sampling(model.default_sampling())
