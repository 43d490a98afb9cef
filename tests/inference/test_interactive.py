"""One picture at a time, with Show-o at laptop size, and the cache against its live encoders."""

from __future__ import annotations

import pytest
import torch

from reca.config.compose import load
from reca.core.images import decode
from reca.features.build import build
from reca.inference.interactive import ask, draw, reconstruct
from reca.models.contract import Sampling
from reca.models.registry import build_model
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny
from tests.toy_model import CODE, Pictures, png

STEPS = Sampling(guidance=1.5, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("showo")
    showo_tiny.model(path / "words").save(path / "model")
    (path / "photo.png").write_bytes(png(5, size=24))
    (path / "torn.png").write_bytes(png(5)[:50])
    return path


def test_draw_is_a_function_of_the_seed(folder):
    first = [
        draw(folder / "model", "a red circle", seed=seed, sampling=STEPS).tobytes()
        for seed in (0, 0, 1)
    ]
    assert first[0] == first[1] != first[2]


PAPER = {  # showo.md 4.2, harmon.md d4, bagel.md 4, openuni.md d
    "showo_clip_512": Sampling(5.0, 50),
    "harmon_15b": Sampling(3.0, 64),
    "bagel_7b": Sampling(4.0, 50),
    "openuni_l_512": Sampling(4.5, 20),
}


@pytest.mark.parametrize("name", PAPER)
def test_released_models_draw_as_published_unless_told(name):
    described = load("paper").models[name]
    with torch.device("meta"):
        model = build_model(described.family, described.network)
    stages = described.sampler  # say it themselves
    published = Sampling(stages.guidance[0], stages.steps)
    assert model.default_sampling() == PAPER[name] == published


def test_what_is_said_replaces_the_default(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "reca.inference.interactive.draw_rows", lambda *given: asked.append(given[3]) or [None]
    )
    draw(folder / "model", "a red circle")
    reconstruct(folder / "model", folder / "photo.png", prompt="describe the image", steps=3)
    draw(folder / "model", "a red circle", sampling=Sampling(7.0, 4), guidance=1.0)
    assert asked == [Sampling(2.0, 12), Sampling(2.0, 3), Sampling(1.0, 4)]


@pytest.mark.parametrize("family", [showo_tiny, harmon_tiny, bagel_tiny, openuni_tiny, janus_tiny])
def test_a_cut_answer_is_told(folder, family, tmp_path, caplog, monkeypatch):
    family.model(tmp_path / "words").save(tmp_path / "model")
    asked = (tmp_path / "model", folder / "photo.png", "what this ?")
    ask(*asked, max_new_tokens=2)
    assert "1 of 1 answers are truncated at 2 tokens" in caplog.text
    caplog.clear()
    monkeypatch.setattr(torch.Tensor, "argmax", end_at_once(family))
    assert ask(*asked, max_new_tokens=2) == ""
    assert "truncated" not in caplog.text
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be at least 1"):
        ask(*asked, max_new_tokens=0)


def end_at_once(family):
    """An argmax that always finds the family's end of an answer."""
    ends = {
        showo_tiny: len(showo_tiny.WORDS) + 1,
        harmon_tiny: harmon_tiny.END,
        openuni_tiny: openuni_tiny.END,
        bagel_tiny: bagel_tiny.network()["special"]["eos"],
        janus_tiny: janus_tiny.EOS_ID,
    }

    def argmax(self, dim=None, keepdim=False):
        return torch.full_like(self.amax(dim, keepdim), ends[family], dtype=torch.long)

    return argmax


def test_a_prompt_that_is_too_long_is_cut_with_a_word_of_it(folder, caplog):
    draw(folder / "model", "a red circle", sampling=STEPS)
    assert not caplog.records
    draw(folder / "model", "a red circle " * 200, sampling=STEPS)
    assert any("is truncated to" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("family", [showo_tiny, janus_tiny])
def test_reconstruct_and_ask(folder, family, tmp_path):
    family.model(tmp_path / "words").save(tmp_path / "model")
    again = [
        reconstruct(tmp_path / "model", folder / "photo.png", prompt="describe the image", seed=seed,
                    sampling=Sampling(steps=2))
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert again[0].size == (16, 16)
    assert again[0].tobytes() == again[1].tobytes() != again[2].tobytes()
    said = [ask(tmp_path / "model", folder / "photo.png", "what this ?") for _ in range(2)]
    assert said[0] == said[1]
    assert isinstance(said[0], str)


@pytest.mark.parametrize(
    ("photo", "message"),
    [("none.png", r"none\.png: cannot read"), ("torn.png", r"torn\.png: unreadable image")],
)
def test_pictures_that_cannot_be_read_are_named(folder, photo, message):
    with pytest.raises(ValueError, match=message):
        ask(folder / "model", folder / photo, "what ?")
    with pytest.raises(ValueError, match=message):
        reconstruct(folder / "model", folder / photo)


def test_no_model_and_no_prompt(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no reca_model\.json here"):
        draw(tmp_path, "a circle")
    with pytest.raises(ValueError, match="prompt is empty"):
        draw(folder / "model", " ")


@pytest.mark.parametrize("variant", ["clip", "vq"])
@pytest.mark.parametrize("use", ["draw", "read"])
def test_cached_features_equal_live_ones(tmp_path, variant, use):
    model, dataset = showo_tiny.model(tmp_path / "words", variant), Pictures(7)
    cache = build(
        model, dataset, tmp_path / "c", use=use, code=CODE, batch_size=3, shard_bytes=1000
    )
    rows = cache.rows([6, 1, 3])
    for row, position in enumerate((6, 1, 3)):
        image = decode(dataset[position].image, name="live")
        for name, tensor in model.encode([image], use).items():
            assert rows[name].dtype == tensor.dtype
            assert torch.equal(rows[name][row], tensor[0])
