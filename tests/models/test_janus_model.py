"""The contract of a tiny Janus-Pro: features, losses, sampling, answers, the model folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from reca.core.finite import NonFinite
from reca.core.rng import generator
from reca.models.common.tokenizer import IGNORE
from reca.models.contract import Sampling, reconstruction_loss, text_to_image_loss
from reca.models.janus import encoders, loss, sampler
from reca.models.janus import layout as layouts
from reca.models.janus import model as janus
from reca.models.janus.batch import DropoutNoise
from reca.models.janus.config import JanusOptions
from reca.models.janus.layout import IMAGE
from reca.models.janus.model import JanusModel
from reca.models.registry import load_model
from tests.models import janus_tiny as tiny

PROMPTS = ["describe the image", "what are there on the left and on the right ?"]
CAPTIONS = ["a red circle", "two red circles and a blue square"]
TURNS = [[("what thing ?", "a red circle")], [("how many ?", "two"), ("describe", "a blue square")]]
NEVER, ALWAYS = (DropoutNoise(torch.full((2,), value), 16) for value in (1.0, 0.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JanusModel:
    return tiny.model(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def drawn(model: JanusModel) -> dict[str, torch.Tensor]:
    return model.encode(tiny.pictures(2), "draw")


def answered(model: JanusModel) -> torch.Tensor:
    read = model.encode(tiny.pictures(2), "read")
    return model.answer_loss(model.conversation(TURNS), read).mean


# ---- features ------------------------------------------------------------------------------------
def test_features(model: JanusModel, drawn: dict[str, torch.Tensor], monkeypatch) -> None:
    assert drawn["target"].shape == (2, 16) and drawn["target"].dtype == torch.int16
    assert drawn["understanding"].shape == (2, 4, 24)
    assert len(set(drawn["target"].flatten().tolist())) > 4
    read = model.encode(tiny.pictures(2, (20, 14)), "read")
    assert set(read) == {"understanding"} and read["understanding"].shape == (2, 4, 24)
    assert not any(feature.requires_grad for feature in [*drawn.values(), *read.values()])
    monkeypatch.setattr(model.frozen, "chunk", 1)
    for name, feature in model.encode(tiny.pictures(2), "draw").items():
        assert torch.allclose(feature.float(), drawn[name].float(), atol=1e-5)


def test_a_square_is_read_as_it_is_generated(model: JanusModel, drawn) -> None:
    """Both encoders get the same pixels (janus.md b)."""
    read = model.encode(tiny.pictures(2), "read")["understanding"]
    assert torch.allclose(read, drawn["understanding"], atol=1e-6)


def test_what_is_read_is_padded_with_grey() -> None:
    wide = Image.new("RGB", (80, 40), (255, 0, 0))
    square = encoders.padded(wide, 40)
    assert square.size == (40, 40)
    assert square.getpixel((20, 5)) == (127, 127, 127) == square.getpixel((20, 34))
    assert square.getpixel((0, 20)) == (255, 0, 0) == square.getpixel((39, 29))
    assert encoders.padded(Image.new("RGB", (400, 4)), 40).size == (40, 40)


def test_padding_is_that_of_transformers(model: JanusModel) -> None:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    published = JanusImageProcessorPil(
        size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for shape in ((48, 48), (60, 96), (96, 31)):
        (image,) = tiny.pictures(1, shape)
        expected = published([image], return_tensors="pt")["pixel_values"][0]
        found = encoders.pictures.to_tensor(encoders.padded(image, 48))
        assert torch.allclose(found, expected, atol=1e-6)


def test_fingerprint_sees_weights_and_sizes(model: JanusModel) -> None:
    before = {use: model.encoder_fingerprint(use) for use in ("draw", "read")}
    assert before["draw"] != before["read"]
    with torch.no_grad():
        for weight, changed in (
            (model.network.aligner.fc1.bias, ()),  # trained weights are not hashed
            (model.frozen.vqmodel.quant_conv.bias, ("draw",)),
            (model.frozen.vision_model.post_layernorm.bias, ("draw", "read")),
        ):
            kept = weight.clone()
            weight.add_(1)
            for use, found in before.items():
                assert (model.encoder_fingerprint(use) != found) == (use in changed)
            weight.copy_(kept)
    assert {use: model.encoder_fingerprint(use) for use in before} == before


# ---- losses --------------------------------------------------------------------------------------
@pytest.mark.parametrize("train_aligner", [True, False])
def test_gradients_reach_exactly_the_trainable_parameters(
    model: JanusModel, drawn: dict[str, torch.Tensor], train_aligner: bool, monkeypatch
) -> None:
    monkeypatch.setattr(model, "options", JanusOptions(train_aligner=train_aligner))
    trained = set(model.trainable_parameters())
    assert any("aligner.fc1" in name for name in trained)  # the aligner of codes
    assert ("network.aligner.fc1.weight" in trained) == train_aligner
    model.zero_grad(set_to_none=True)
    noise = model.sample_noise(2, generator("draws"))
    (reconstruction_loss(model, PROMPTS, drawn, noise).mean + answered(model)).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == trained | {n for n in reached if n.startswith("network.aligner.")}
    groups = model.decay_groups()
    assert sorted([*groups.decay, *groups.no_decay]) == sorted(trained)
    model.zero_grad(set_to_none=True)


def test_counts_are_known_beforehand(model: JanusModel, drawn: dict[str, torch.Tensor]) -> None:
    noise = model.sample_noise(2, generator("count"))
    for made in (
        reconstruction_loss(model, PROMPTS, drawn, noise),
        text_to_image_loss(model, CAPTIONS, drawn, noise),
    ):
        assert made.count == noise.count == 2 * 16 == model.loss_count(noise, with_image=True)
    spoken = model.conversation(TURNS)
    read = model.encode(tiny.pictures(2), "read")
    assert model.answer_loss(spoken, read).count == spoken.count == (3 + 1) + (1 + 1) + (3 + 1)
    alone = model.conversation(TURNS, with_image=False)
    assert model.answer_loss(alone, None).count == alone.count == spoken.count


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(model: JanusModel, drawn) -> None:
    """Prompts of different lengths in one batch, also if the condition of one of them is dropped."""
    for noise in (NEVER, replace(NEVER, condition_dropout=torch.tensor([1.0, 0.0]))):
        for texts, loss_of in ((PROMPTS, reconstruction_loss), (CAPTIONS, text_to_image_loss)):
            whole = loss_of(model, texts, drawn, noise).total
            rows = [
                loss_of(
                    model,
                    [texts[row]],
                    {name: feature[[row]] for name, feature in drawn.items()},
                    replace(noise, condition_dropout=noise.condition_dropout[[row]]),
                ).total
                for row in range(2)
            ]
            assert torch.allclose(whole, sum(rows), rtol=1e-5)
    read = model.encode(tiny.pictures(2), "read")
    rows = [
        model.answer_loss(
            model.conversation([TURNS[row]]), {n: f[[row]] for n, f in read.items()}
        ).total
        for row in range(2)
    ]
    assert torch.allclose(model.answer_loss(model.conversation(TURNS), read).total, sum(rows))


@torch.no_grad()
def test_a_condition_is_dropped_as_the_sampler_has_it(model: JanusModel, drawn) -> None:
    """Also for RecA: pads, which are attended to, replace the whole prompt (janus.md e)."""
    for texts, features in ((CAPTIONS, None), (PROMPTS, drawn)):
        condition = model.condition(texts, features)
        prompts, embeddings = sampler.prepare(model.network, condition, model.unconditional(2))
        states = loss.code_states(
            model.network, model.options, drawn["target"].long(), condition, ALWAYS
        )
        steps = sampler.sample(
            model.network, prompts, embeddings, 2.0, lambda step, _: drawn["target"][:, step].long()
        )
        logits = torch.stack([step.logits for step in steps], dim=1)
        dropped = model.network.code_logits(states)
        assert torch.allclose(logits[2:], dropped, atol=1e-4)
        kept = loss.code_states(
            model.network, model.options, drawn["target"].long(), condition, NEVER
        )
        assert torch.allclose(logits[:2], model.network.code_logits(kept), atol=1e-4)
        assert not torch.allclose(logits[:2], logits[2:], atol=1e-2)
    shares = model.sample_noise(10_000, generator("share")).condition_dropout
    assert 0.08 < (shares < model.options.condition_dropout).float().mean() < 0.12


def test_losses_read_nothing_back_from_the_device(model: JanusModel, monkeypatch) -> None:
    """Tensors on the meta device have no values, so lengths and positions must come from ids on the CPU."""
    monkeypatch.setattr("reca_kernels.ops.autocast", lambda tensor: tensor)  # does not support meta
    with torch.device("meta"):
        empty = janus.build(tiny.network(implementation="torch"))
    empty.set_tokenizer(model.text.tokenizer)
    features = {
        "target": torch.empty(2, 16, dtype=torch.int16, device="meta"),
        "understanding": torch.empty(2, 4, 24, device="meta"),
    }
    for noise in (NEVER, DropoutNoise(torch.tensor([1.0, 0.0]), 16)):
        for condition in (empty.condition(PROMPTS, features), empty.condition(CAPTIONS)):
            assert empty.generation_loss(features, condition, noise).total.shape == ()
    for read in (features, None):
        spoken = empty.conversation(TURNS, with_image=read is not None)
        assert empty.answer_loss(spoken, read).total.shape == ()


# ---- text ----------------------------------------------------------------------------------------
def test_wording(model: JanusModel) -> None:
    text, special = model.text, model.text.special

    def tokens(ids: list[int]) -> list[str]:
        return ["IMAGE" if i == IMAGE else text.tokenizer.convert_ids_to_tokens(i) for i in ids]

    asked = ["<|User|>", ":"]
    ending = ["\n\n", "<|Assistant|>", ":"]
    image = [tiny.BEGIN, "IMAGE", tiny.END]
    assert tokens(text.caption(" a circle ")) == [
        tiny.BOS, *asked, "a", "circle", *ending, tiny.BEGIN,
    ]  # fmt: skip
    assert tokens(text.reconstruction("describe")) == [
        tiny.BOS, *asked, *image, "\n", "describe", *ending, tiny.BEGIN,
    ]  # fmt: skip
    assert tokens(text.question("what")) == [
        tiny.BOS, *asked, *image, "\n", "what", *ending,
    ]  # fmt: skip
    assert tokens(text.question("what", with_image=False)) == [
        tiny.BOS, *asked, "what", *ending,
    ]  # fmt: skip
    assert text.unconditional() == [special.bos, special.boi]
    ids, labels = text.conversation([("<image>\nhow many ?", "two"), ("what", "red")], True)
    assert tokens([i for i in labels if i != IGNORE]) == ["two", tiny.EOS, "red", tiny.EOS]
    assert ids.count(IMAGE) == 1 and len(ids) == len(labels)
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))


def test_questions_follow_the_system_prompt(tmp_path: Path) -> None:
    described = tiny.network() | {"system_prompt": "describe the image"}
    made = janus.build(described)
    tiny.tokenizer_files().save_pretrained(tmp_path)
    made.read_tokenizer(tmp_path)
    system = made.text.ids(["describe the image\n\n"])[0]
    assert made.text.question("what")[1 : 1 + len(system)] == system
    assert made.text.conversation([("what", "red")], True)[0][1 : 1 + len(system)] == system
    assert made.text.caption("red")[1] != system[0]


def test_another_tokenizer_is_refused(model: JanusModel, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer_files()
    network = tiny.network() | {"llm": tiny.network()["llm"] | {"vocab_size": 60}}
    with pytest.raises(ValueError, match=r"ids up to \d+, but network.llm.vocab_size is 60"):
        janus.build(network).set_tokenizer(tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="has no bos token"):
        janus.build(tiny.network()).set_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="not in this model's vocabulary: 'purple', 'dog'"):
        model.condition(["a purple red dog"])


def test_a_conversation_is_cut_to_its_room(model: JanusModel, monkeypatch) -> None:
    monkeypatch.setattr(model, "options", JanusOptions(max_text=20))
    spoken = model.conversation([[("what", "red " * 100)]])
    assert len(spoken.ids[0]) == 20
    assert model.answer_loss(spoken, model.encode(tiny.pictures(1), "read")).count == spoken.count


# ---- inference -----------------------------------------------------------------------------------
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_an_image_does_not_depend_on_its_batch(
    model: JanusModel, drawn: dict[str, torch.Tensor], guidance: float, reconstruct: bool
) -> None:
    """Prompts of different lengths share a left-padded batch; each row has its own generator."""

    def made(rows: list[int]) -> list[list[int]]:
        texts = [(PROMPTS if reconstruct else CAPTIONS)[row] for row in rows]
        features = {name: f[rows] for name, f in drawn.items()} if reconstruct else None
        condition = model.condition(texts, features)
        sampling = Sampling(guidance, 16)
        noise = [generator("row", row) for row in rows]
        empty = model.unconditional(len(rows))
        codes = sampler.sample_codes(model.network, condition, empty, sampling, noise)
        images = model.generate(condition, empty, sampling, [generator("row", r) for r in rows])
        assert all(image.size == (16, 16) for image in images)
        assert images[0].tobytes() == model.frozen.decode(codes[:1])[0].tobytes()
        return codes.tolist()

    together = made([0, 1])
    assert made([0]) == together[:1] and made([1]) == together[1:]
    assert together[0] != together[1]


@pytest.mark.parametrize("second", [[7, 8], [7, 8, 9, 3]])
@torch.no_grad()
def test_a_static_cache_equals_the_whole_forward(model: JanusModel, second: list[int]) -> None:
    """Also over several passes, and for a left-padded row."""
    prompts = layouts.prompts([[3, 4, 5, 6], second], 4)
    later = torch.tensor([[9, 10, 11, 2], [12, 13, 14, 1]])
    decoder = sampler.Decoder(model.network, prompts.real, 8)
    found = [decoder(model.network.embed(prompts.ids))]
    found += [decoder(model.network.embed(part)) for part in later.split([1, 2, 1], dim=1)]
    found = torch.cat(found, dim=1)
    for row, start in ((0, 0), (1, 4 - len(second))):
        ids = torch.cat([prompts.ids[row, start:], later[row]]).unsqueeze(0)
        whole = model.network.hidden(model.network.embed(ids))
        assert torch.allclose(found[row, start:], whole[0], atol=1e-5)


def test_codes_follow_their_probabilities() -> None:
    """Codes of probability 0 never occur, the others with their frequencies."""
    wanted = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    uniform = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1].unsqueeze(1)
    logits = wanted.log().expand(20_000, 6)
    codes = sampler.multinomial(uniform, 1.0)(0, logits)
    found = torch.bincount(codes, minlength=6) / 20_000
    assert torch.allclose(found, wanted, atol=1e-3)
    cold = sampler.multinomial(uniform, 0.01)(0, logits)
    assert (cold == 1).all()


def test_generation_checks_its_arguments(model: JanusModel, caplog) -> None:
    condition, two = model.condition(CAPTIONS), [generator(1), generator(2)]
    with pytest.raises(ValueError, match="2 images need as many generators"):
        model.generate(condition, None, Sampling(1.0), [generator(1)])
    with pytest.raises(ValueError, match="needs an unconditional"):
        model.generate(condition, None, Sampling(2.0), two)
    with pytest.raises(ValueError, match=r"sampling.options.order = 'random': unknown option"):
        model.check_sampling(Sampling(options={"order": "random"}))
    assert model.default_sampling() == Sampling(1.0, 16)
    model.generate(condition, None, Sampling(1.0, 16), two)
    assert not caplog.records
    model.generate(condition, None, Sampling(1.0, 3), two)
    assert "sampling.steps 3 has no effect: 16 codes take a step each" in caplog.text
    bias = model.network.generation_head.vision_head.bias
    with torch.no_grad():
        kept = bias.clone()
        bias[3] = float("nan")
        with pytest.raises(NonFinite, match="logits of the image codes"):
            model.generate(condition, None, Sampling(0.0), two)
        bias.copy_(kept)


def test_answers_stop_and_do_not_depend_on_their_batch(model: JanusModel) -> None:
    read = model.encode(tiny.pictures(2), "read")
    questions = ["how many ?", "what are the red circles on the left ?"]
    together = model.answer(questions, read, max_new_tokens=6)
    for row, question in enumerate(questions):
        one = {name: feature[row : row + 1] for name, feature in read.items()}
        assert model.answer([question], one, max_new_tokens=6) == [together[row]]
    assert model.answer(questions, read, max_new_tokens=0) == ["", ""]
    head = model.network.language_model.lm_head.weight
    with torch.no_grad():
        kept, norm = head.clone(), model.network.language_model.model.norm.weight
        state = torch.ones_like(norm)
        kept_norm = norm.clone()
        head.zero_()
        norm.copy_(state * 0)
        assert (
            model.answer(questions, None, max_new_tokens=2) == ["a a"] * 2
        )  # the first id of a tie
        head.copy_(kept)
        norm.copy_(kept_norm)


# ---- model folder --------------------------------------------------------------------------------
def test_round_trip(model: JanusModel, drawn, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(m.state_dict().values() for m in (model, again)), strict=True)
    )
    assert again.encoder_fingerprint("draw") == model.encoder_fingerprint("draw")
    noise = model.sample_noise(2, generator("round trip"))
    losses = [reconstruction_loss(m, PROMPTS, drawn, noise).total for m in (model, again)]
    assert torch.equal(*losses)
    described = json.loads((tmp_path / "reca_model.json").read_text())
    assert (described["family"], described["format"]) == ("janus", 1)
    model.save(tmp_path / "twice")
    for name in ("model.safetensors", "tokenizer.json", "reca_model.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_parts_from_official_files(model: JanusModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    made = janus.build(tiny.network())
    with pytest.raises(ValueError, match="this Janus-Pro has no tokenizer"):
        made.condition(CAPTIONS)
    with pytest.raises(ValueError, match="Janus-Pro requires weights, tokenizer; given: weights"):
        made.load_parts({"weights": tmp_path})
    made.load_parts({"weights": tmp_path / "model.safetensors", "tokenizer": tmp_path})
    assert all(torch.equal(model.state_dict()[name], t) for name, t in made.state_dict().items())


def test_network_section_is_checked() -> None:
    for wrong, complaint in [
        ({"options": {"dropout": 0.1}}, "dropout = 0.1: unknown key"),
        ({"options": {"condition_dropout": 2}}, "condition_dropout = 2: must be at most 1"),
        ({"options": {"checkpoint_layout": "hub"}}, "checkpoint_layout"),
        ({"resolution": 20}, "resolution 20 is not a multiple of the 8 pixels"),
        ({"vq": tiny.network()["vq"] | {"base_channels": 8}}, "must be a multiple of 32"),
        ({"llm": {"width": 3}}, "llm.width = 3: unknown key"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            janus.build(tiny.network() | wrong)
