from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reca.core.rng import generator
from reca.models.contract import Sampling, reconstruction_loss, text_to_image_loss
from reca.models.registry import load_model
from reca.models.showo import loss, sampler
from reca.models.showo import model as showo
from reca.models.showo.batch import MaskNoise
from reca.models.showo.config import ShowoOptions
from reca.models.showo.layout import IGNORE
from reca.models.showo.model import ShowoModel
from tests.models import showo_tiny as tiny

PROMPTS = ["describe the image", "what are there on the left and on the right ?"]
CAPTIONS = ["a red circle", "two red circles and a blue square"]
TURNS = [[("what thing ?", "a red circle")], [("how many ?", "two"), ("describe", "a blue square")]]


@pytest.fixture(scope="module", params=["clip", "vq"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShowoModel:
    return tiny.model(tmp_path_factory.mktemp("tokenizer"), request.param)


@pytest.fixture(scope="module")
def drawn(model: ShowoModel) -> dict[str, torch.Tensor]:
    return model.encode(tiny.pictures(2), "draw")


def answered(model: ShowoModel) -> torch.Tensor:
    read = model.encode(tiny.pictures(2), "read")
    return model.answer_loss(model.conversation(TURNS), read).mean


# ---- features -----------------------------------------------------------------------------------
def test_features(model: ShowoModel, drawn: dict[str, torch.Tensor]) -> None:
    clip = model.config.understanding == "clip"
    assert drawn["target"].shape == (2, 16) and drawn["target"].dtype == torch.int16
    assert drawn["understanding"].shape == ((2, 4, 24) if clip else (2, 4))
    read = model.encode(tiny.pictures(2, side=20), "read")
    assert read["understanding"].shape == ((2, 4, 24) if clip else (2, 16))


@pytest.mark.parametrize(
    ("named", "side"), [("full", 16), ("half", 8), ("quarter", 4), ("blur8", 16)]
)
def test_the_condition_of_codes_is_what_its_name_says(named: str, side: int) -> None:
    frozen = showo.build(tiny.network("vq") | {"vq_condition": named}).frozen
    pixels = torch.rand(2, 3, 16, 16, generator=generator("showo condition", 0)) * 2 - 1
    made = frozen.vq_condition(pixels)
    assert made.shape == (2, 3, side, side)
    assert torch.equal(made, pixels) == (named == "full")
    if named == "blur8":  # two columns and rows are left, and what is between them
        assert torch.linalg.matrix_rank(made.double(), tol=1e-4).max() <= 2
    features = frozen.encode(tiny.pictures(2), "draw")
    assert features["understanding"].shape == (2, (side // 4) ** 2)


def test_chunks_do_not_change_features(
    model: ShowoModel, drawn: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.frozen, "chunk", 1)
    for name, feature in model.encode(tiny.pictures(2), "draw").items():
        assert torch.allclose(feature.float(), drawn[name].float(), atol=1e-5)


def test_fingerprint_sees_weights_and_options(model: ShowoModel, tmp_path: Path) -> None:
    before = {use: model.encoder_fingerprint(use) for use in ("draw", "read")}
    assert before["draw"] != before["read"]
    assert model.encoder_fingerprint("draw") == before["draw"]
    with torch.no_grad():
        model.network.showo.lm_head.bias.add_(1)  # trained parts do not enter
        assert model.encoder_fingerprint("draw") == before["draw"]
        model.network.showo.lm_head.bias.sub_(1)
        weight = model.frozen.magvit.encoder.conv_in.bias
        kept = weight.clone()
        weight.add_(1)
        assert model.encoder_fingerprint("draw") != before["draw"]
        reads_codes = model.config.understanding == "vq"
        assert (model.encoder_fingerprint("read") != before["read"]) == reads_codes
        weight.copy_(kept)
    assert model.encoder_fingerprint("draw") == before["draw"]
    other = {"vq_condition": "blur8"} if reads_codes else {"clip_condition_normalise": True}
    network = tiny.network(model.config.understanding) | other
    changed = showo.build(network)
    changed.load_state_dict(model.state_dict())
    assert changed.encoder_fingerprint("draw") != before["draw"]
    assert changed.encoder_fingerprint("read") == before["read"]


# ---- losses ---------------------------------------------------------------------------------------
def test_only_biases_are_exempt_from_weight_decay(model: ShowoModel) -> None:
    groups = model.decay_groups()
    assert all(name.endswith("bias") for name in groups.no_decay)
    assert not any(name.endswith("bias") for name in groups.decay)


@pytest.mark.parametrize("asked", [None, True, False])
def test_reca_reaches_embeddings_as_asked(
    model: ShowoModel, drawn: dict[str, torch.Tensor], asked: bool | None, monkeypatch
) -> None:
    monkeypatch.setattr(model, "options", ShowoOptions(reca_embedding_grad=asked))
    model.zero_grad(set_to_none=True)
    reconstruction_loss(model, PROMPTS, drawn, model.sample_noise(2, generator(1))).mean.backward()
    expected = asked if asked is not None else model.config.understanding == "vq"
    embeddings = model.network.showo.model.embed_tokens.weight.grad
    assert (embeddings is not None) == expected
    assert model.network.showo.lm_head.weight.grad.abs().sum() > 0


def test_counts_are_known_beforehand(model: ShowoModel, drawn: dict[str, torch.Tensor]) -> None:
    noise = model.sample_noise(2, generator("count"))
    reconstructed = reconstruction_loss(model, PROMPTS, drawn, noise)
    captioned = text_to_image_loss(model, CAPTIONS, drawn, noise)
    assert reconstructed.count == model.loss_count(noise, with_image=True) == noise.count
    assert captioned.count == model.loss_count(noise, with_image=False) == noise.count + 4
    spoken = model.conversation(TURNS)
    read = model.encode(tiny.pictures(2), "read")
    assert model.answer_loss(spoken, read).count == spoken.count == (3 + 1) + (1 + 1) + (3 + 1)
    alone = model.conversation(TURNS, with_image=False)
    assert model.answer_loss(alone, None).count == alone.count == spoken.count


def test_only_text_to_image_drops_its_text(
    model: ShowoModel, drawn: dict[str, torch.Tensor]
) -> None:
    noise = model.sample_noise(2, generator("dropout"))
    always = MaskNoise(noise.t, noise.u, torch.zeros(2))
    never = MaskNoise(noise.t, noise.u, torch.ones(2))
    with torch.no_grad():
        empty = model.generation_loss(drawn, model.unconditional(2), never).total
        assert torch.equal(text_to_image_loss(model, CAPTIONS, drawn, always).total, empty)
        assert not torch.equal(text_to_image_loss(model, CAPTIONS, drawn, never).total, empty)
        kept = [reconstruction_loss(model, PROMPTS, drawn, d).total for d in (always, never)]
    assert torch.equal(*kept)


def test_conversation_labels_are_answers_and_their_end(model: ShowoModel) -> None:
    ids, labels = model.text.conversation(TURNS[1])
    spoken = model.text.tokenizer.convert_ids_to_tokens([i for i in labels if i != IGNORE])
    assert spoken == ["two", "<|endoftext|>", "a", "blue", "square", "<|endoftext|>"]
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    tagged = model.text.conversation([("<image>\nhow many ?", "two")])
    assert tagged == model.text.conversation([("how many ?", "two")])


def test_a_conversation_is_cut_to_its_room(model: ShowoModel) -> None:
    long = [[("what", "red " * 100)]]
    spoken = model.conversation(long)
    assert len(spoken.ids[0]) == spoken.length < 100
    assert model.answer_loss(spoken, model.encode(tiny.pictures(1), "read")).count == spoken.count


def test_unknown_words_and_long_prompts_are_named(
    model: ShowoModel, drawn: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="not in this model's vocabulary: 'purple', 'dog'"):
        model.condition(["a purple red dog"])
    with pytest.raises(ValueError, match=r"prompt 'red red .* the RecA layout has room"):
        model.condition(["red " * 40], drawn)


# ---- inference --------------------------------------------------------------------------------------


def test_prefix_reuse_equals_the_whole_forward(
    model: ShowoModel, drawn: dict[str, torch.Tensor]
) -> None:
    """The logits after the cached prefix are those of the training forward on the same ids."""
    noise = model.sample_noise(2, generator("prefix"))
    masked, n = noise.masked, model.config.num_vq_tokens
    for condition in (model.condition(CAPTIONS), model.condition(PROMPTS, drawn)):
        never = MaskNoise(noise.t, noise.u, torch.ones(2))
        with torch.no_grad():
            layout = loss.generation_layout(
                model.config, model.options, drawn["target"], condition, never
            ).prepared(True, model.network.device)
            hidden = loss.hidden(model.network, model.options, layout, condition.understanding)[
                :, -1 - n : -1
            ]
            whole = model.network.head(hidden, model.config.ids.codes)
            logits, _ = sampler.code_logits(model.network, model.options, condition, None)(
                drawn["target"].long(), masked
            )
        assert torch.allclose(logits, whole, atol=1e-5)


def test_generation_checks_its_arguments(model: ShowoModel) -> None:
    condition = model.condition(CAPTIONS)
    with pytest.raises(ValueError, match="2 images need as many generators"):
        model.generate(condition, None, Sampling(), [generator(1)])
    with pytest.raises(ValueError, match="needs an unconditional"):
        model.generate(condition, None, Sampling(guidance=1.0), [generator(1), generator(2)])


def test_answers_stop(model: ShowoModel) -> None:
    read = model.encode(tiny.pictures(2), "read")
    questions = ["how many ?", "what are the red circles on the left ?"]
    eos, bias = model.config.ids.eos, model.network.showo.lm_head.bias
    with torch.no_grad():
        kept = bias.clone()
        bias[eos] += 1e4
        assert model.answer(questions, read) == ["", ""]
        asked = sampler.question_layout(
            model.config, [model.text.question(q) for q in questions], None
        )
        steps = sampler.greedy(model.network, asked, model.network.inputs(asked.ids, None), 9)
        assert len(list(steps)) == 1
        bias.copy_(kept)
        bias[model.text.ids(["red"])[0]] += 1e4
        assert model.answer(questions, read, max_new_tokens=3) == ["red red red"] * 2
        assert model.answer(questions, None, max_new_tokens=2) == ["red red"] * 2
        bias.copy_(kept)


# ---- weights ------------------------------------------------------------------------------------------
def test_a_saved_model_has_official_names(model: ShowoModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = load_model(tmp_path)
    described = json.loads((tmp_path / "reca_model.json").read_text())
    assert (described["family"], described["format"]) == ("showo", 1)
    assert set(again.official_state()) == {
        name.removeprefix("network.") for name in model.trainable_parameters()
    }


def test_parts_from_official_files(model: ShowoModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    parts = {"weights": "model", "image_tokenizer": "magvit", "vision": "clip"}
    paths = {part: tmp_path / f"{name}.safetensors" for part, name in parts.items()}
    paths["tokenizer"] = tmp_path
    if model.config.understanding == "vq":
        del paths["vision"]
    fresh = showo.build(tiny.network(model.config.understanding))
    with pytest.raises(ValueError, match="has no tokenizer"):
        fresh.condition(CAPTIONS)
    with pytest.raises(ValueError, match="requires weights, image_tokenizer"):
        fresh.load_parts({"weights": paths["weights"]})
    fresh.load_parts(paths)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in fresh.state_dict().items())
    tiny.tokenizer_files().save_pretrained(tmp_path / "small")
    network = tiny.network(model.config.understanding) | {"llm_vocab_size": 60, "endoftext": 59}
    with pytest.raises(ValueError, match="this Show-o needs 70"):
        showo.build(network).set_tokenizer(model.text.tokenizer)


def test_network_section_is_checked() -> None:
    for wrong, complaint in [
        ({"options": {"trimm": True}}, "trimm = True: unknown key.*trim"),
        ({"options": {"loss_vocab": "image"}}, "has no soi and eoi"),
        ({"options": {"text_dropout": 2}}, "text_dropout"),
        ({"widht": 3}, "widht = 3: unknown key"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            showo.build(tiny.network() | wrong)
