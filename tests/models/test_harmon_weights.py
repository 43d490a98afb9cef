"""Harmon's checkpoints: released names and shapes, strict loading of every official layout, saving back."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reca.models import checkpoint_io as files
from reca.models.checkpoint_io import check_manifest, manifest_of
from reca.models.common.naming import read
from reca.models.harmon import weights
from reca.models.harmon.model import HarmonModel, build
from reca.models.import_base import make_base
from tests.models import harmon_tiny as tiny
from tests.reference import golden_cases as golden
from tests.reference.harmon_config import released

SIZES = {"0.5b": (771_398_899, 704_942_880), "1.5b": (2_561_230_067, 2_494_774_048)}  # harmon.md a


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HarmonModel:
    return tiny.model(tmp_path_factory.mktemp("tokenizer"))


def fresh() -> HarmonModel:
    torch.manual_seed(1)
    return build(tiny.network())


def network_state(model: HarmonModel) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.official_state().items()}


def vae_state(model: HarmonModel) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in weights.VAE.state(model.frozen.vae).items()}


def pin(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_equal(one: HarmonModel, other: HarmonModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- released sizes ------------------------------------------------------------------------------
def test_tables_start_as_wide_as_asked() -> None:
    """Released sizes start at MAR's 0.02; a narrow encoder cannot tell its places apart with that."""
    for wanted in (0.02, 0.5):
        torch.manual_seed(0)
        given = tiny.network()
        if wanted != 0.02:
            given["mar"]["initializer_range"] = wanted
        mar = build(given).network.mar
        for table in (mar.encoder_pos_embed_learned, mar.decoder_pos_embed_learned):
            assert table.std().item() == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_the_released_ones(size: str) -> None:
    with torch.device("meta"):
        model = HarmonModel(released(size))
    found = manifest_of(model.official_state())
    vae = manifest_of(weights.VAE.state(model.frozen.vae))
    found |= {weights.INSIDE + name: entry for name, entry in vae.items()}
    expected = golden.manifest("harmon", f"harmon_{size}")
    check_manifest(size, found, expected)
    assert list(map(len, (found, vae))) == [len(expected), 312]
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.network.parameters())
    assert (total, trained) == SIZES[size]


@pytest.mark.parametrize(
    ("size", "decayed", "spared"),
    [
        ("0.5b", (277, 668_872_192), (385, 36_070_688)),
        ("1.5b", (369, 2_342_740_480), (581, 152_033_568)),
    ],
)
def test_decay_groups_are_the_published_ones(
    size: str, decayed: tuple[int, int], spared: tuple[int, int]
) -> None:
    """harmon.md e counts the class embedding, which we do not train, among the decayed."""
    with torch.device("meta"):
        model = HarmonModel(released(size))
    parameters = dict(model.named_parameters())
    groups = model.decay_groups()
    unused = "network.mar.class_emb.weight"
    assert unused not in {*groups.decay, *groups.no_decay}
    for names, expected in (([*groups.decay, unused], decayed), (groups.no_decay, spared)):
        assert (len(names), sum(parameters[name].numel() for name in names)) == expected


# ---- official layouts ------------------------------------------------------------------------------
@pytest.mark.parametrize("wrapper", [None, "state_dict", "module"])
@pytest.mark.parametrize("tied", ["kept", "left out"])
def test_a_pickle_loads_under_its_hash(
    model: HarmonModel, tmp_path: Path, wrapper: str | None, tied: str
) -> None:
    state = network_state(model)
    if tied == "left out":
        del state[weights.TIED]
    path = tmp_path / "harmon_0.5b.pth"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    vae = tmp_path / "kl16.ckpt"
    torch.save({"model": vae_state(model) | {"loss.logvar": torch.zeros(1)}}, vae)
    tiny.tokenizer_files().save_pretrained(tmp_path / "words")
    parts = {"weights": path, "image_tokenizer": vae, "tokenizer": tmp_path / "words"}
    other = fresh()
    with pytest.raises(ValueError, match="opened only under a known sha256"):
        other.load_parts(parts)
    other.load_parts(parts, sha256={"weights": pin(path), "image_tokenizer": pin(vae)})
    assert_equal(model, other)


def test_half_precision_is_cast(model: HarmonModel, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in network_state(model).items()}
    path = tmp_path / "model.safetensors"
    save_file(half, path)
    other = fresh()
    other.load(path)
    for name, tensor in other.official_state().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[name].float())


def test_the_hub_layout_has_the_vae_inside(model: HarmonModel, tmp_path: Path) -> None:
    vae = {weights.INSIDE + name: tensor for name, tensor in vae_state(model).items()}
    state = network_state(model) | vae
    del state[weights.TIED]
    tiny.tokenizer_files().save_pretrained(tmp_path / "words")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    other = fresh()
    other.load_parts({"weights": tmp_path, "tokenizer": tmp_path / "words"})
    assert_equal(model, other)


def test_parts_are_checked(model: HarmonModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights.NETWORK.save(model.network, path)
    with pytest.raises(ValueError, match="Harmon is made of weights"):
        fresh().load_parts({"weights": path})
    with pytest.raises(ValueError, match=r"holds no vae\.\*; give image_tokenizer"):
        fresh().load_parts({"weights": path, "tokenizer": tmp_path})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("proj_in.0.weight"), r"1 missing \(proj_in.0.weight\)"),
        (lambda s: s.update({"mar.surprise": torch.zeros(1)}), r"1 unexpected \(mar.surprise\)"),
        (lambda s: s.update({"proj_in.0.bias": torch.zeros(3)}), "proj_in.0.bias is float32"),
        (lambda s: s.update({weights.TIED: s[weights.TIED] + 1}), "the model ties the two"),
    ],
)
def test_anything_else_is_refused(model: HarmonModel, tmp_path: Path, change, complaint) -> None:
    state = network_state(model)
    change(state)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "model.safetensors")
    other = fresh()
    before = network_state(other)
    with pytest.raises(ValueError, match=complaint) as error:
        other.load(tmp_path / "model.safetensors")
    assert str(tmp_path) in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in other.official_state().items())


def test_what_is_no_part_is_left_out_and_named(model: HarmonModel, tmp_path: Path, caplog) -> None:
    state = network_state(model) | {"ema.decay": torch.ones(1)}
    state["llm.model.rotary_emb.inv_freq"] = torch.ones(8)
    other = fresh()
    with caplog.at_level("WARNING"):
        weights.NETWORK.load(other.network, state, "harmon.pth")
    assert "harmon.pth: 2 tensors are left out: ema.decay, llm.model.rotary" in caplog.text
    assert all(torch.equal(state[k], v) for k, v in other.official_state().items())


def test_a_vae_with_other_names_is_refused(model: HarmonModel) -> None:
    state = vae_state(model)
    state["encoder.down.0.block.7.conv1.weight"] = state.pop("encoder.down.0.block.0.conv1.weight")
    with pytest.raises(
        ValueError, match=r"kl16: .*1 missing .*1 unexpected \(encoder.down.0.block.7"
    ):
        weights.VAE.load(fresh().frozen.vae, state, "kl16")


class Intruder:
    """A pickle that would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_is_data_never_code(model: HarmonModel, tmp_path: Path) -> None:
    path, marker = tmp_path / "harmon.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"state_dict": Intruder(marker)}))
    with pytest.raises(ValueError, match="is no plain checkpoint"):
        read(path, pin(path))
    assert not marker.exists()


# ---- saving ------------------------------------------------------------------------------------------
def test_saved_files_have_official_names(model: HarmonModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    network = files.safetensors_manifest(tmp_path / "model.safetensors")
    assert set(network) == set(model.official_state()) and weights.TIED in network
    vae = files.safetensors_manifest(tmp_path / "vae.safetensors")
    assert set(vae) == set(vae_state(model))
    assert vae["decoder.mid.attn_1.q.weight"][0][2:] == (1, 1)
    other = fresh()
    other.load(tmp_path)
    assert_equal(model, other)


def test_base_finds_the_vae_in_the_download(model: HarmonModel, tmp_path: Path) -> None:
    """One download holds all checkpoints; the VAE is its kl16.ckpt, pinned by the record of the download."""
    from reca.core.artifacts import Stage

    tiny.tokenizer_files().save_pretrained(tmp_path / "words")
    with Stage("source", tmp_path / "harmon", inputs={}, section={}, code="test") as stage:
        torch.save(network_state(model), stage.staging / "harmon_0.5b.pth")
        torch.save(network_state(model), stage.staging / "harmon_1.5b.pth")
        torch.save({"model": vae_state(model)}, stage.staging / "kl16.ckpt")
    parts = {
        "weights": tmp_path / "harmon/harmon_0.5b.pth",
        "image_tokenizer": tmp_path / "harmon",
        "tokenizer": tmp_path / "words",
    }
    make_base("harmon", tiny.network(), tmp_path / "base", parts=parts)
    other = fresh()
    other.load(tmp_path / "base")
    assert_equal(model, other)
