"""The base model folder: from a shipped folder, from released parts, and never from anything else."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from reca.core import artifacts
from reca.models import registry
from reca.models.import_base import check_network, make_base
from tests import toy_model
from tests.models import showo_tiny
from tests.toy_model import DrawingToy

PLAIN = {"transform": "plain"}


@pytest.fixture(autouse=True)
def toy_family(monkeypatch):
    toy = registry.Family("toy", "Toy", module="reca.models.toy.model")
    monkeypatch.setitem(registry.FAMILIES, "toy", toy)
    real = registry.family_module
    monkeypatch.setattr(
        registry, "family_module", lambda f: toy_model.__name__ if f == "toy" else real(f)
    )


@pytest.fixture
def shipped(tmp_path):
    with artifacts.Stage("align", tmp_path / "shipped", inputs={}, section={}) as stage:
        DrawingToy(seed=3).save(stage.staging)
    return tmp_path / "shipped"


def test_a_shipped_folder_becomes_the_base(shipped, tmp_path):
    make_base("toy", PLAIN, tmp_path / "out", folder=shipped)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.safetensors", "reca_model.json"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(state[k], v) for k, v in DrawingToy(seed=3).official_state().items())


def test_a_damaged_shipped_folder_is_refused(shipped, tmp_path):
    weights = shipped / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: content differs"):
        make_base("toy", PLAIN, tmp_path / "out", folder=shipped)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_or_of_another_family(shipped, tmp_path):
    with pytest.raises(ValueError, match=r"no reca_model\.json here"):
        make_base("toy", PLAIN, tmp_path / "out", folder=tmp_path)
    with pytest.raises(ValueError, match="family 'toy', but 'showo' is configured"):
        make_base("showo", showo_tiny.network(), tmp_path / "out", folder=shipped)


def test_sizes_are_those_of_the_folder_and_options_the_configurations(shipped, tmp_path):
    with pytest.raises(ValueError) as caught:
        make_base("toy", {"transform": "negative"}, tmp_path / "out", folder=shipped)
    said = "network.transform is 'plain', but 'negative' in the configuration; set network.transform to 'plain'"
    assert str(caught.value).startswith(f"{shipped}/reca_model.json: {said}")
    assert not (tmp_path / "out").exists()


def test_a_default_that_the_folder_was_not_saved_with_is_refused(tmp_path):
    saved = showo_tiny.network()
    (tmp_path / "reca_model.json").write_text(json.dumps({"family": "showo", "network": saved}))
    with torch.device("meta"):
        check_network(tmp_path, saved, registry.build_model("showo", saved))
        other = {**saved, "options": {"t2i_boundary_tokens": True}}
        check_network(tmp_path, other, registry.build_model("showo", other))
        short = {name: value for name, value in saved.items() if name != "system_prompt"}
        with pytest.raises(ValueError, match=r"network.system_prompt is '', but .* in the config"):
            check_network(tmp_path, short, registry.build_model("showo", short))


class Recorder(DrawingToy):
    given: tuple = ()

    def load_parts(self, parts, *, sha256=None, allow_unpinned=False):
        Recorder.given = (dict(parts), dict(sha256), allow_unpinned)


@pytest.mark.parametrize("named", [False, True], ids=["folder", "file"])
def test_pickles_are_opened_under_the_recorded_hash(tmp_path, monkeypatch, named):
    monkeypatch.setattr(toy_model, "build", lambda network: Recorder())
    with artifacts.Stage("fetch", tmp_path / "source", inputs={}, section={}) as stage:
        (stage.staging / "pytorch_model.bin").write_bytes(b"weights")
        (stage.staging / "config.json").write_text("{}")
    (tmp_path / "words").mkdir()
    source = tmp_path / "source"
    parts = {"weights": source / "pytorch_model.bin" if named else source}
    parts["tokenizer"] = tmp_path / "words"
    make_base("toy", PLAIN, tmp_path / "out", parts=parts)
    assert Recorder.given == (parts, {"weights": artifacts.sha256_bytes(b"weights")}, False)


def test_showo_from_a_folder_and_from_parts(tmp_path):
    """The real family: the shipped folder and the released parts give the same base."""
    model = showo_tiny.model(tmp_path / "words")
    model.save(tmp_path / "shipped")
    network = showo_tiny.network("clip")
    make_base("showo", network, tmp_path / "one", folder=tmp_path / "shipped")
    names = {"weights": "model", "image_tokenizer": "magvit", "vision": "clip"}
    parts = {role: tmp_path / "shipped" / f"{name}.safetensors" for role, name in names.items()}
    make_base(
        "showo", network, tmp_path / "two", parts={**parts, "tokenizer": tmp_path / "shipped"}
    )
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with pytest.raises(ValueError, match="given: weights"):
        make_base("showo", network, tmp_path / "no", parts={"weights": parts["weights"]})
