"""Janus-Pro's checkpoints: released names and shapes, strict loading and saving in both layouts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reca.core.artifacts import Stage
from reca.models.checkpoint_io import check_manifest, manifest_of, safetensors_manifest
from reca.models.import_base import make_base
from reca.models.janus import layout as layouts
from reca.models.janus import sampler, weights
from reca.models.janus.model import JanusModel, build
from reca.models.registry import load_model
from tests.models import janus_tiny as tiny
from tests.reference import golden_cases as golden
from tests.reference.janus_model import RELEASED

LAYOUTS = ("official", "transformers")
SIZES = {  # janus.md a
    "1b": {"official": 2_089_297_547, "transformers": 2_076_636_811},
    "7b": {"official": 7_420_434_059, "transformers": 7_407_773_323},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JanusModel:
    """A model with the unused tensors of official checkpoints."""
    made = tiny.model(tmp_path_factory.mktemp("tokenizer"))
    shapes = weights.unread_shapes(made.config)
    made.unread = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes)}
    return made


def fresh(**options: object) -> JanusModel:
    torch.manual_seed(1)
    return build(tiny.network(**options))


def state_of(model: JanusModel, layout: str) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in weights.NAMING[layout].state(model).items()}


def assert_equal(one: JanusModel, other: JanusModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_shapes_are_the_released_ones(size: str, layout: str) -> None:
    with torch.device("meta"):
        model = JanusModel(RELEASED[size])
        if layout == "official":
            model.unread = {n: torch.empty(s) for n, s in weights.unread_shapes(model.config)}
    state = weights.NAMING[layout].state(model)
    expected = golden.manifest("janus", f"janus_pro_{size}_{layout}")
    check_manifest(size, manifest_of(state), expected)
    assert sum(tensor.numel() for tensor in state.values()) == SIZES[size][layout]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("saved_as", LAYOUTS)
def test_both_layouts_load_and_are_saved(
    model: JanusModel, tmp_path: Path, layout: str, saved_as: str
) -> None:
    state = state_of(model, layout)
    save_file(state, tmp_path / "given.safetensors")
    other = fresh(checkpoint_layout=saved_as)
    other.load(tmp_path / "given.safetensors")
    assert_equal(model, other)
    other.set_tokenizer(model.text.tokenizer)
    other.save(tmp_path / "saved")
    found = safetensors_manifest(tmp_path / "saved/model.safetensors")
    expected = set(state_of(model, saved_as))
    if layout == "transformers":  # without the unused tensors
        expected -= set(model.unread)
    assert set(found) == expected
    again = load_model(tmp_path / "saved")
    assert_equal(model, again)
    assert set(again.unread) == expected & set(model.unread)
    assert all(torch.equal(again.unread[name], model.unread[name]) for name in again.unread)


@torch.no_grad()
def test_transformers_computes_the_same_from_its_layout(model: JanusModel) -> None:
    """Its complete model, loaded strictly: answers about an image, and image codes with guidance."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    network, special = tiny.network(), model.text.special
    image = special.pad  # any id that is not in the prompt
    vision = network["vision"] | {"image_size": 16, "projection_dim": 32, "num_image_tokens": 4}
    vq = network["vq"] | {"projection_dim": 32, "image_token_embed_dim": 32}
    published = JanusForConditionalGeneration(
        JanusConfig(
            text_config={"model_type": "llama", "tie_word_embeddings": False} | network["llm"],
            vision_config=vision,
            vq_config=vq,
            image_token_id=image,
            tie_word_embeddings=False,
        )
    ).eval()
    published.load_state_dict(state_of(model, "transformers"))
    frozen, (picture,) = model.frozen, tiny.pictures(1)
    pixels = frozen._stack([picture], lambda image: image)
    question = model.text.question("what this ?")
    ids = torch.tensor([layouts.expanded(question, 4, image)])
    expected = published(input_ids=ids, pixel_values=pixels).logits
    marked = torch.tensor([layouts.expanded(question, 4)])
    hidden = model.network.hidden(model.network.inputs(marked, frozen.features(pixels)))
    found = model.network.language_model.lm_head(hidden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    prompt = torch.tensor([model.text.caption("a red circle")])
    states = published.model.language_model(input_ids=prompt).last_hidden_state
    ours = sampler.Decoder(model.network, torch.ones_like(prompt).bool(), prompt.shape[1])
    logits = ours.code_logits(ours(model.network.embed(prompt)))
    torch.testing.assert_close(logits, published.model.generation_head(states)[:, -1])


@pytest.mark.parametrize(
    ("layout", "change", "complaint"),
    [
        ("official", lambda s: s.pop("gen_embed.weight"), r"1 missing \(gen_embed.weight\)"),
        ("official", lambda s: s.update({"gen_x": torch.zeros(1)}), r"1 unexpected \(gen_x\)"),
        ("official", lambda s: s.pop(weights._COUNTER), "1 missing .*codebook_used"),
        ("official", lambda s: s.update({weights._COUNTER: torch.ones(3)}), "codebook_used is flo"),
        (
            "official",
            lambda s: s.update({f"{weights._TOWER}blocks.0.attn.qkv.bias": torch.ones(7)}),
            r"qkv.bias is float32 \[7\], not float32 \[72\]",
        ),
        ("transformers", lambda s: s.pop("lm_head.weight"), r"1 missing \(lm_head.weight\)"),
        ("transformers", lambda s: s.update({"model.x": torch.ones(1)}), r"unexpected \(model.x\)"),
    ],
)
def test_anything_else_is_refused(
    model: JanusModel, tmp_path: Path, layout: str, change, complaint: str
) -> None:
    state = state_of(model, layout)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    other = fresh()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=complaint) as error:
        other.load(tmp_path / "model.safetensors")
    assert str(tmp_path) in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())
    assert not other.unread


@pytest.mark.parametrize("shards", [1, 2])
def test_released_pickles_load_under_their_recorded_hashes(
    model: JanusModel, tmp_path: Path, shards: int
) -> None:
    """The 1B model is one pickle, the 7B model two with an index (janus.md a); their download holds the tokenizer."""
    state = {name: tensor.bfloat16() for name, tensor in state_of(model, "official").items()}
    names = sorted(state)
    with Stage("source", tmp_path / "hub", inputs={}, section={}, code="test") as stage:
        tiny.tokenizer_files().save_pretrained(stage.staging)
        where = {}
        for number in range(shards):
            file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number}.bin"
            own = {name: state[name] for name in names[number::shards]}
            torch.save(own, stage.staging / file)
            where |= dict.fromkeys(own, file)
        if shards > 1:
            index = stage.staging / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": where}))
    parts = {"weights": tmp_path / "hub", "tokenizer": tmp_path / "hub"}
    make_base("janus", tiny.network(), tmp_path / "base", parts=parts)
    found = load_model(tmp_path / "base").official_state()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())
    with pytest.raises(ValueError, match="opened only if its sha256 is known"):
        fresh().load(tmp_path / "hub")
    (tmp_path / "hub" / where[names[0]]).write_bytes(b"other")
    with pytest.raises(ValueError, match=r"sha256 is .*is pinned"):
        make_base("janus", tiny.network(), tmp_path / "again", parts=parts)


def test_the_pin_of_a_single_file_is_its_hash(model: JanusModel, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state_of(model, "official"), path)
    pin = hashlib.sha256(path.read_bytes()).hexdigest()
    for known in (pin, {path.name: pin}):
        other = fresh()
        other.load_weights("weights", path, known)
        assert_equal(model, other)
