"""One picture at a time, with Show-o at laptop size, and the cache against its live encoders."""

from __future__ import annotations

import pytest
import torch

from reca.cache import build
from reca.images import decode
from reca.inference import ask, draw, reconstruct
from reca.models.unified import Sampling
from tests.models import showo_tiny
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


def test_a_prompt_that_is_too_long_is_cut_with_a_word_of_it(folder, caplog):
    draw(folder / "model", "a red circle", sampling=STEPS)
    assert not caplog.records
    draw(folder / "model", "a red circle " * 200, sampling=STEPS)
    assert any("is cut to the" in record.getMessage() for record in caplog.records)


def test_reconstruct_and_ask(folder):
    again = [
        reconstruct(folder / "model", folder / "photo.png", prompt="describe the image", seed=seed,
                    sampling=Sampling(steps=2))
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert again[0].size == (16, 16)
    assert again[0].tobytes() == again[1].tobytes() != again[2].tobytes()
    said = [ask(folder / "model", folder / "photo.png", "what this ?") for _ in range(2)]
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
