"""Harmon's implementation of the contract: features, losses and their noise, images, answers, model folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca.core.rng import generator
from reca.models.contract import Sampling, reconstruction_loss, text_to_image_loss
from reca.models.harmon import model as harmon
from reca.models.harmon.batch import Dropout
from reca.models.harmon.config import HarmonOptions
from reca.models.harmon.layout import IGNORE, IMAGE
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.network import embed_prompts, read_image, scaled_gradient
from reca.models.harmon.sampler import SamplerOptions
from tests.models import harmon_tiny as tiny

PROMPTS = ["describe the image", "what are there on the left and on the right ?"]
CAPTIONS = ["a red circle", "two red circles and a blue square"]
TURNS = [[("what thing ?", "a red circle")], [("how many ?", "two"), ("describe", "a blue square")]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HarmonModel:
    return tiny.model(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def drawn(model: HarmonModel) -> dict[str, torch.Tensor]:
    return model.encode(tiny.pictures(2), "draw")


def spoken(model: HarmonModel, with_image: bool = True) -> harmon.Conversation:
    return model.with_noise(model.conversation(TURNS, with_image), generator("spoken"))


# ---- features -----------------------------------------------------------------------------------
def test_the_cache_holds_latents_only(model: HarmonModel, drawn: dict) -> None:
    assert set(drawn) == {"target"} and drawn["target"].shape == (2, 4, 4, 4)
    read = model.encode(tiny.pictures(2, (20, 12)), "read")
    assert set(read) == {"latents"} and read["latents"].shape == (2, 4, 4, 4)


def test_pictures_are_stretched_cropped_or_padded(model: HarmonModel, monkeypatch) -> None:
    picture = tiny.pictures(1, (24, 16))
    stretched = model.encode(picture, "draw")["target"]
    found = {"read": model.encode(picture, "read")["latents"]}
    prints = {model.encoder_fingerprint("draw")}
    for drawing in ("crop", "pad"):
        monkeypatch.setattr(model.frozen, "drawing", drawing)
        found[drawing] = model.encode(picture, "draw")["target"]
        prints.add(model.encoder_fingerprint("draw"))
    assert torch.equal(found["pad"], found["read"])
    assert not torch.allclose(found["crop"], found["pad"])
    assert not torch.allclose(stretched, found["pad"])
    assert len(prints) == 3 and model.encoder_fingerprint("read") in prints


def test_fingerprint_sees_the_vae_and_only_it(model: HarmonModel) -> None:
    before = model.encoder_fingerprint("draw")
    assert model.encoder_fingerprint("read") != before
    with torch.no_grad():
        model.network.proj_in[0].bias.add_(1)
        assert model.encoder_fingerprint("draw") == before
        model.network.proj_in[0].bias.sub_(1)
        weight = model.frozen.vae.encoder.conv_in.bias
        kept = weight.clone()
        weight.add_(1)
        assert model.encoder_fingerprint("draw") != before
        weight.copy_(kept)
    assert model.encoder_fingerprint("draw") == before


def test_a_token_may_be_a_square_of_latents(model: HarmonModel, tmp_path: Path) -> None:
    network = tiny.network()
    network["mar"] |= {"patch": 2, "table": 2}
    other = tiny.of_network(tmp_path, network, tiny.tokenizer_files())
    other.frozen.load_state_dict(model.frozen.state_dict())
    images = tiny.pictures(2)
    single, whole = (one.encode(images, "draw")["target"] for one in (model, other))
    assert whole.shape == (2, 2, 2, 4 * 4)
    assert whole[0, 0, 1].tolist() == single[0, :2, 2:].permute(2, 0, 1).flatten().tolist()
    assert torch.equal(other.frozen.decode(whole), model.frozen.decode(single))
    assert other.encoder_fingerprint("draw") != model.encoder_fingerprint("draw")
    noise = other.sample_noise(2, generator("patch"))
    loss = reconstruction_loss(other, PROMPTS, {"target": whole}, noise)
    assert loss.total.isfinite() and loss.count == noise.count
    rows = [generator("row", row) for row in range(2)]
    drawn = other.generate(other.condition(CAPTIONS), None, Sampling(steps=4), rows)
    assert [image.size for image in drawn] == [(16, 16)] * 2


# ---- drawing losses --------------------------------------------------------------------------------
def test_the_head_and_biases_are_exempt_from_weight_decay(model: HarmonModel) -> None:
    groups = model.decay_groups()
    assert not any("diffloss" in name or name.endswith(".bias") for name in groups.decay)


def test_counts_are_known_beforehand(model: HarmonModel, drawn: dict) -> None:
    noise = model.sample_noise(2, generator("count"))
    assert 0.7 * 16 <= noise.masked <= 16 and noise.count == 2 * 2 * noise.masked
    for with_image, loss in (
        (True, reconstruction_loss(model, PROMPTS, drawn, noise)),
        (False, text_to_image_loss(model, CAPTIONS, drawn, noise)),
    ):
        assert loss.count == model.loss_count(noise, with_image) == noise.count
    read = model.encode(tiny.pictures(2), "read")
    talk = spoken(model)
    assert model.answer_loss(talk, read).count == talk.count == (3 + 1) + (1 + 1) + (3 + 1)
    alone = spoken(model, with_image=False)
    assert model.answer_loss(alone, None).count == alone.count == talk.count


def test_draws_cover_the_rate_and_differ_by_rank(model: HarmonModel) -> None:
    masked = {model.sample_noise(1, generator(0, step, 0, "draws")).masked for step in range(60)}
    assert min(masked) == 12 and max(masked) == 16  # ceil(16 * [0.7, 1])
    one, other = (model.sample_noise(2, generator(0, 0, rank, "draws")) for rank in (0, 1))
    assert not torch.equal(one.gaussian, other.gaussian) and one.dropout != other.dropout
    again = model.sample_noise(2, generator(0, 0, 0, "draws"))
    assert torch.equal(one.t, again.t) and one.dropout == again.dropout


def test_the_condition_is_seen_and_its_gradient_scaled(model: HarmonModel, drawn: dict) -> None:
    noise = replace(
        model.sample_noise(2, generator("seen")), text_dropout=torch.ones(2), dropout=None
    )
    other = {"target": drawn["target"].flip(0)}
    own = model.generation_loss(drawn, model.condition(PROMPTS, drawn), noise).total
    shuffled = model.generation_loss(drawn, model.condition(PROMPTS, other), noise).total
    assert not torch.allclose(own, shuffled)
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(scaled_gradient(x, 0.1), x)
    scaled_gradient(x, 0.1).sum().backward()
    assert torch.allclose(x.grad, torch.full((3,), 0.1))


@pytest.mark.parametrize("hides", [False, True])
def test_dropped_text_keeps_the_picture_unless_asked(
    model: HarmonModel, drawn: dict, hides: bool, monkeypatch
) -> None:
    monkeypatch.setattr(model, "options", HarmonOptions(dropout_hides_image=hides))
    never, always = (
        replace(
            model.sample_noise(2, generator("drop")), text_dropout=torch.full((2,), u), dropout=None
        )
        for u in (1.0, 0.0)
    )
    with torch.no_grad():
        other = {"target": drawn["target"].flip(0)}
        dropped, elsewhere, kept = (
            model.generation_loss(drawn, model.condition(PROMPTS, features), noise).total
            for features, noise in ((drawn, always), (other, always), (drawn, never))
        )
        plain = text_to_image_loss(model, CAPTIONS, drawn, always).total
    assert not torch.allclose(dropped, kept)
    assert torch.equal(dropped, elsewhere) == hides  # hidden: no picture is left to differ by
    assert torch.allclose(dropped, plain) == hides  # and the sequence is the unconditional one


@pytest.mark.parametrize("hides", [False, True])
def test_padding_is_skipped_with_the_same_result(
    model: HarmonModel, drawn: dict, hides: bool, monkeypatch
) -> None:
    """RecA's padding is in the middle, conversations' at the end; a hidden image is padding, too."""
    noise = replace(model.sample_noise(2, generator("pads")), text_dropout=torch.tensor([0.0, 1.0]))
    read = model.encode(tiny.pictures(2), "read")
    first, tokens = model.network.llm.model.layers[0], []
    hook = first.register_forward_pre_hook(lambda _, args: tokens.append(args[0][..., 0].numel()))
    found = []
    for unpadded in (False, True):
        options = HarmonOptions(dropout_hides_image=hides, unpadded=unpadded)
        monkeypatch.setattr(model, "options", options)
        model.zero_grad(set_to_none=True)
        reca = model.generation_loss(drawn, model.condition(PROMPTS, drawn), noise).mean
        i2t = model.answer_loss(spoken(model), read).mean
        (reca + i2t).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((reca.detach(), i2t.detach(), grads))
    hook.remove()
    model.zero_grad(set_to_none=True)
    padded, packed = found
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)
    assert tokens[2] < tokens[0] and tokens[3] < tokens[1]


def test_dropout_is_a_function_of_its_seed(model: HarmonModel, drawn: dict) -> None:
    noise = model.sample_noise(2, generator("dropout"))
    assert noise.dropout is not None
    condition = model.condition(PROMPTS, drawn)
    before = torch.get_rng_state()
    one, again = (model.generation_loss(drawn, condition, noise).total for _ in range(2))
    assert torch.equal(one, again) and torch.equal(torch.get_rng_state(), before)
    for dropout in (None, Dropout(noise.dropout.seed + 1)):
        changed = model.generation_loss(drawn, condition, replace(noise, dropout=dropout)).total
        assert not torch.allclose(one, changed)
    talk, read = spoken(model), model.encode(tiny.pictures(2), "read")
    answered = model.answer_loss(talk, read).total
    assert torch.equal(answered, model.answer_loss(talk, read).total)
    assert not torch.allclose(answered, model.answer_loss(replace(talk, dropout=None), read).total)


def test_dropout_takes_the_published_share() -> None:
    with Dropout(3).block(0, torch.device("cpu")):
        kept = torch.nn.functional.dropout(torch.ones(20000), 0.1)
    assert abs((kept == 0).float().mean() - 0.1) < 0.01


def test_frozen_condition_caches_embeddings(
    drawn: dict, tmp_path: Path, model: HarmonModel
) -> None:
    frozen = tiny.model(tmp_path, frozen_condition=True)
    features = frozen.encode(tiny.pictures(2), "draw")
    assert features["understanding"].shape == (2, 19, 32)
    noise = replace(model.sample_noise(2, generator("frozen")), dropout=None)
    live = reconstruction_loss(model, PROMPTS, drawn, noise)
    fixed = reconstruction_loss(frozen, PROMPTS, features, noise)
    assert torch.allclose(live.total, fixed.total)  # the same number; only the gradient is another
    encoder = "mar.encoder_blocks.0.attn.qkv.weight"
    gradients = []
    for one, loss in ((model, live), (frozen, fixed)):
        one.zero_grad(set_to_none=True)
        loss.mean.backward()
        gradients.append(one.network.get_parameter(encoder).grad)
    assert not torch.allclose(*gradients)
    with pytest.raises(ValueError, match="needs cached understanding embeddings"):
        frozen.condition(PROMPTS, drawn)
    before = frozen.encoder_fingerprint("draw")
    with torch.no_grad():
        frozen.network.proj_in[0].bias.add_(1)
    assert frozen.encoder_fingerprint("draw") != before


# ---- texts -------------------------------------------------------------------------------------------
def test_wording(model: HarmonModel) -> None:
    words = model.text.tokenizer.convert_ids_to_tokens
    told = words([i for i in model.condition(CAPTIONS).texts[0]])
    assert told[:3] == ["<|im_start|>", "user", "\n"] and told[3:6] == ["generate", "an", "image"]
    asked = model.text.reconstruction(PROMPTS[0])
    assert words(asked[2]) == "\n\n" and asked[3] == IMAGE and words(asked[4]) == "describe"
    assert words(model.text.reconstruction(PROMPTS[0], leading_newline=False)[2]) == "\n"
    ids, labels = model.text.conversation(TURNS[1], with_image=True)
    said = words([label for label in labels if label != IGNORE])
    assert said == ["two", "<|im_end|>", "a", "blue", "square", "<|im_end|>"]
    assert ids.count(IMAGE) == 1 and ids.index(IMAGE) == 3
    tagged = model.text.conversation([("<image>\nhow many ?", "two")], with_image=True)
    assert tagged == model.text.conversation([("how many ?", "two")], with_image=True)


def test_a_conversation_is_cut_to_its_room(model: HarmonModel, monkeypatch) -> None:
    monkeypatch.setattr(model, "options", HarmonOptions(max_text=20))
    talk = model.conversation([[("what", "red " * 100)]])
    assert len(talk.ids[0]) == 20 and 0 < talk.count < 20
    assert model.answer_loss(talk, model.encode(tiny.pictures(1), "read")).count == talk.count


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("widht", 3, "widht = 3: unknown key"),
        ("end", 10**6, "network.end 1000000 is not a text id"),
        ("end", "3", "network.end = '3': must be a whole number"),
        ("resolution", 17, "17 is not a multiple of 4 pixels"),
        (
            "resolution",
            16.5,
            "network.resolution = 16.5: must be a whole number or a list of 2",
        ),
        (
            "resolution",
            "16",
            "network.resolution = '16': must be a whole number or a list of 2",
        ),
        (
            "resolution",
            [16],
            r"network.resolution = \[16\]: must be a whole number or a list of 2",
        ),
        ("resolution", [16, "16"], "must be a whole number or a list of 2, each a whole number"),
        (
            "resolution",
            True,
            "network.resolution = True: must be a whole number or a list of 2",
        ),
        ("llm", None, "network.llm = None: must be a mapping"),
        ("llm.layers", 2, "network.llm.layers = 2: unknown key; "),
        (
            "llm.hidden_size",
            "32",
            "network.llm.hidden_size = '32': must be a whole number above 0",
        ),
        ("llm.rope_theta", "1e6", "network.llm.rope_theta = '1e6': must be a number above 0"),
        (
            "llm.num_attention_heads",
            3,
            "num_attention_heads = 3: must divide network.llm.hidden_size = 32",
        ),
        ("llm.num_attention_heads", 32, "hidden_size = 32 into heads of an even width"),
        (
            "llm.num_key_value_heads",
            3,
            "_heads = 3: must divide network.llm.num_attention_heads = 2; change one",
        ),
        ("mar", None, "network.mar = None: must be a section with encoder_width"),
        (
            "mar.encoder_heads",
            5,
            "encoder_heads = 5: must divide network.mar.encoder_width = 24; change one",
        ),
        ("mar.encoder_heads", 0, "network.mar.encoder_heads = 0: must be at least 1"),
        ("mar.dropout", "0.1", "network.mar.dropout = '0.1': must be a number"),
        ("mar.dropout", 1.0, "network.mar.dropout = 1.0: must be below 1"),
        ("mar.min_mask_rate", 1.5, "network.mar.min_mask_rate = 1.5: must be below 1"),
        ("mar.mlp_ratio", 0.01, "network.mar.mlp_ratio is 0.01; it must leave"),
        ("mar.noise_schedule", "sine", "= 'sine': must be one of cosine, linear"),
        ("mar.initializer_range", 0, "network.mar.initializer_range = 0: must be above 0"),
        ("mar.repeats", 0, "network.mar.repeats = 0: must be at least 1"),
        ("mar.repeats", 2.5, "network.mar.repeats = 2.5: must be a whole number"),
        ("mar.patch", 3, "resolution 16 is not a multiple of 12 pixels, which a token has"),
        ("mar.mask_spread", 0, "network.mar.mask_spread = 0: must be above 0"),
        ("mar.table", 0, "network.mar.table = 0: must be at least 1"),
        (
            "mar.sampling_steps",
            2000,
            "network.mar.sampling_steps = 2000: must be at most 1000",
        ),
        ("vae", 3, "network.vae = 3: must be a section with width"),
        ("vae.multipliers", [], r"network.vae.multipliers = \[\]: must hold at least 1"),
        (
            "vae.multipliers",
            [1, "2"],
            r"network.vae.multipliers\[1\] = '2': must be a whole number",
        ),
        ("vae.groups", 3, "network.vae.groups 3 does not divide a level's width 8 x 1; change"),
        ("vae.scale", 0, "network.vae.scale = 0: must be above 0"),
        ("options.tex_dropout", 1, "tex_dropout = 1: unknown key; did you mean 'text_dropout'"),
        ("options.drawing", "squeeze", "= 'squeeze': must be one of stretch, crop, pad"),
        ("options.implementation", "cuda", "= 'cuda': must be one of auto, triton, torch"),
        ("options.text_dropout", 2, "network.options.text_dropout = 2: must be at most 1"),
        ("options.encode_batch", 0, "network.options.encode_batch = 0: must be at least 1"),
    ],
)
def test_bad_network_is_named(key: str, value: object, complaint: str) -> None:
    network = tiny.network()
    *section, name = key.split(".")
    (network[section[0]] if section else network)[name] = value
    with pytest.raises(ValueError, match=complaint):
        harmon.build(network)


def test_bad_text_is_named(model: HarmonModel) -> None:
    with pytest.raises(ValueError, match=r"not in this model's vocabulary: 'purple'"):
        model.condition(["a purple circle"])
    other = harmon.build(tiny.network() | {"end": tiny.END - 1})
    with pytest.raises(ValueError, match="this Harmon needs"):
        other.set_tokenizer(model.text.tokenizer)
    with pytest.raises(ValueError, match="has no tokenizer"):
        harmon.build(tiny.network()).condition(CAPTIONS)


# ---- inference ----------------------------------------------------------------------------------------


def test_pictures(model: HarmonModel) -> None:
    images = model.generate(
        model.condition(CAPTIONS),
        model.unconditional(2),
        Sampling(3.0, steps=20, options={"schedule": "linear"}),  # more steps than latents
        [generator("row", row) for row in range(2)],
    )
    assert [image.size for image in images] == [(16, 16)] * 2


def test_generation_checks_its_arguments(model: HarmonModel) -> None:
    condition = model.condition(CAPTIONS)
    with pytest.raises(ValueError, match="2 images need as many generators"):
        model.generate(condition, None, Sampling(), [generator(1)])
    with pytest.raises(ValueError, match="needs an unconditional"):
        model.generate(condition, None, Sampling(guidance=2.0), [generator(1), generator(2)])
    for wrong, complaint in [
        (
            Sampling(options={"order": "random"}),
            "options.order = 'random': unknown option; allowed: schedule",
        ),
        (Sampling(options={"schedule": "cosine"}), "must be one of constant, linear"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            model.generate(condition, None, wrong, [generator(1), generator(2)])
    for changed in ({"steps": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"guidance": -1.0}):
        (name,) = changed
        with pytest.raises(ValueError, match=f"sampling.{name} is"):
            SamplerOptions.of(Sampling(**changed))


def test_answers_stop(model: HarmonModel) -> None:
    read = model.encode(tiny.pictures(2), "read")
    questions = ["how many ?", "what are the red circle on the left ?"]
    calls: list[int] = []
    for token, answer, steps in (("<|im_end|>", "", 1), ("red", "red red red", 3)):
        wanted = model.text.tokenizer.convert_tokens_to_ids(token)

        def say(module, args, out, wanted=wanted):
            calls.append(1)
            return out.index_fill(-1, torch.tensor([wanted]), 1e4)

        hook = model.network.llm.lm_head.register_forward_hook(say)
        calls.clear()
        assert model.answer(questions, read, max_new_tokens=3) == [answer] * 2
        assert len(calls) == steps
        assert model.answer(questions, None, max_new_tokens=3) == [answer] * 2
        hook.remove()


def test_greedy_answers_are_the_training_forwards_argmax(model: HarmonModel) -> None:
    """Token by token with cached keys equals one pass over question and answer."""
    read = model.encode(tiny.pictures(1), "read")
    question = "how many ?"
    answer = model.answer([question], read, max_new_tokens=4)[0]
    ids = [*model.text.question(question), *model.text.tokenizer(answer)["input_ids"]]
    with torch.no_grad():
        embeddings, mask = embed_prompts(
            model.network, [ids], read_image(model.network, read["latents"])
        )
        logits = model.network.llm.lm_head(model.network.hidden(embeddings, mask=mask))
    said = logits[0].argmax(-1)[len(model.text.question(question)) - 2 + 19 :].tolist()
    assert model.text.decoded(said[: len(answer.split())]) == answer


# ---- weights --------------------------------------------------------------------------------------------
