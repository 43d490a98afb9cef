"""Checkpoints load strictly or not at all, and a foreign pickle is data, never code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reca.models import checkpoint_io as files
from reca.models.common.naming import Naming
from reca.models.showo.clip import ClipTower
from reca.models.showo.config import ShowoConfig, TowerConfig
from reca.models.showo.magvit import Magvit, MagvitConfig
from reca.models.showo.network import Showo
from reca.models.showo.weights import (
    CLIP,
    MAGVIT,
    NETWORK,
)
from reca.models.streaming import assign_strictly
from tests.reference import golden_cases as golden

VQ = MagvitConfig(8, (1, 2), (1, 1), (1, 2), (1, 1), 3)
LLM = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
TOWER = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}
CLIP_SHOWO = ShowoConfig(
    llm=LLM,
    vq=VQ,
    resolution=8,
    llm_vocab_size=9,
    endoftext=0,
    understanding="clip",
    clip_vision=TOWER,
    projector=(8, 8, 8),
)
MODULES = {
    "showo": lambda: Showo(CLIP_SHOWO),
    "magvit": lambda: Magvit(VQ),
    "clip": lambda: ClipTower(TowerConfig(**TOWER)),
}

NAMINGS = {Showo: NETWORK, Magvit: MAGVIT, ClipTower: CLIP}


def load_official(module, path, **given):
    NAMINGS[type(module)].load_file(module, path, **given)


def save_official(module, path):
    NAMINGS[type(module)].save(module, path)


def official_state(module):
    return NAMINGS[type(module)].state(module)


@pytest.fixture(params=MODULES)
def build(request):
    return MODULES[request.param]


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in official_state(module).items()}


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = official_state(one), official_state(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- round trips --------------------------------------------------------------------------------
def test_saved_weights_load_back(build, tmp_path):
    module, other = build(), build()
    save_official(module, tmp_path / "new" / "model.safetensors")
    load_official(other, tmp_path / "new" / "model.safetensors")
    assert_equal(module, other)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_equal_weights_give_equal_bytes(build, tmp_path):
    module = build()
    save_official(module, tmp_path / "a.safetensors")
    save_official(module, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_saved_names_are_official(tmp_path):
    save_official(MODULES["clip"](), tmp_path / "clip.safetensors")
    names = files.safetensors_manifest(tmp_path / "clip.safetensors")
    assert all(name.startswith("vision_model.") for name in names)
    assert "vision_model.pre_layrnorm.weight" in names


def test_a_pickle_loads_under_its_hash(build, tmp_path):
    module, other = build(), build()
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(module), path)
    load_official(other, tmp_path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert_equal(module, other)


def test_shards_load_by_their_index(build, tmp_path):
    module, other = build(), build()
    tensors = state(module)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    load_official(other, tmp_path)
    assert_equal(module, other)
    again = build()
    load_official(again, tmp_path / "model.safetensors")  # which this release has in shards
    assert_equal(module, again)

    index.write_text(json.dumps({"weight_map": weight_map | {"ghost": "a.safetensors"}}))
    with pytest.raises(ValueError, match=r"1 missing \(ghost\)"):
        load_official(other, tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="not a plain file name"):
        load_official(other, tmp_path)


# ---- what official files may lack or add --------------------------------------------------------
def test_computed_tables_may_be_missing_but_not_different(tmp_path):
    module, other = Magvit(VQ), Magvit(VQ)
    tensors = state(module)
    table = tensors.pop("quantize.embedding")
    tensors.pop("quantize.power_vals")
    save_file(tensors, tmp_path / "lean.safetensors")
    load_official(other, tmp_path / "lean.safetensors")
    assert_equal(module, other)

    save_file(tensors | {"quantize.embedding": -table}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: quantize\.embedding differs"):
        load_official(other, tmp_path / "other.safetensors")


def test_the_text_half_of_clip_is_left_out_and_reported(tmp_path, caplog):
    module, other = MODULES["clip"](), MODULES["clip"]()
    extra = {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    extra["vision_model.embeddings.position_ids"] = torch.arange(5)
    save_file(state(module) | extra, tmp_path / "clip.safetensors")
    with caplog.at_level("INFO", logger="reca"):
        load_official(other, tmp_path / "clip.safetensors")
    assert "3 tensors are skipped" in caplog.text
    assert_equal(module, other)


def test_our_prefixless_clip_names_are_not_official(tmp_path):
    module = MODULES["clip"]()
    save_file(dict(module.state_dict()), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"missing .*unexpected"):
        load_official(module, tmp_path / "clip.safetensors")


# ---- strictness ---------------------------------------------------------------------------------
def broken(tensors: dict[str, torch.Tensor], fault: str) -> dict[str, torch.Tensor]:
    first = sorted(name for name in tensors if not name.startswith("quantize."))[0]
    if fault == "missing":
        return {name: tensor for name, tensor in tensors.items() if name != first}
    if fault == "unexpected":
        return tensors | {"surplus.weight": torch.zeros(1)}
    return tensors | {first: torch.zeros(*tensors[first].shape, 2)}


@pytest.mark.parametrize("fault", ["missing", "unexpected", "different"])
def test_faults_are_named_and_nothing_is_loaded(build, tmp_path, fault):
    module = build()
    before = state(module)
    changed = {
        name: tensor if name.startswith("quantize.") else tensor + 1
        for name, tensor in before.items()
    }
    save_file(broken(changed, fault), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*\b1 {fault} \("):
        load_official(module, tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in official_state(module).items())


def test_many_faults_are_counted_and_a_few_shown():
    expected = golden.manifest("showo", "magvitv2")
    with pytest.raises(ValueError, match=r"here: .* 380 missing \((\S+, ){4}\.\.\.\)"):
        files.check_manifest(
            "here", {}, expected, optional=("quantize.embedding", "quantize.power_vals")
        )


def test_an_integer_is_not_a_float():
    with pytest.raises(ValueError, match=r"int64 \[2\], not float32 \[2\]"):
        files.check_manifest("here", {"a": ((2,), "int64")}, {"a": ((2,), "float32")})
    files.check_manifest("here", {"a": ((2,), "bfloat16")}, {"a": ((2,), "float32")})


# ---- foreign pickles ----------------------------------------------------------------------------
class Malicious:
    """Unpickling this writes a file, unless the loader builds tensors only."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def save_plain_pickle(value, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_plain_pickle])
def test_a_malicious_pickle_is_refused(tmp_path, save):
    path, canary = tmp_path / "pytorch_model.bin", tmp_path / "canary"
    save({"weight": Malicious(canary)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is not a plain checkpoint"):
        files.load_foreign(path, digest)
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_a_pickle_needs_its_hash(tmp_path, caplog):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="only if its sha256 is known"):
        files.load_foreign(path)
    with pytest.raises(ValueError, match="is pinned; fetch it again"):
        files.load_foreign(path, "0" * 64)
    assert torch.equal(files.load_foreign(path, allow_unpinned=True)["a"], torch.ones(1))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in caplog.text


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.ones(1)}}, {"step": 3}])
def test_only_a_flat_dict_of_tensors_is_a_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"x\.bin: is not a flat dict"):
        files.load_foreign(tmp_path / "x.bin", allow_unpinned=True)


def test_an_old_torch_opens_no_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match=r"install torch >= 2\.10"):
        files.load_foreign(tmp_path / "x.bin", "0" * 64)


# ---- damaged and ambiguous files ----------------------------------------------------------------
@pytest.fixture
def whole(tmp_path) -> bytes:
    files.save_safetensors({"a": torch.ones(64)}, tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:5],
        lambda whole: whole[:40],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: whole[:8] + b"[" + whole[9:],
        lambda whole: b"<!doctype html><html>404</html>",
    ],
    ids=["empty", "stub", "header", "body", "tail", "length", "json", "html"],
)
def test_a_damaged_safetensors_file_is_named(tmp_path, whole, damage):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(whole))
    for read in (files.load_safetensors, files.safetensors_manifest, files.load_checkpoint):
        with pytest.raises(ValueError, match=r"model\.safetensors: is not a readable safetensors"):
            read(path)


ODD = {
    "float8_e4m3fn": lambda whole: whole.to(torch.float8_e4m3fn),
    "uint8": lambda whole: whole.to(torch.uint8),
    "int8": lambda whole: whole.to(torch.int8),
    "bool": lambda whole: whole > 0,
    "complex64": lambda whole: whole.to(torch.complex64),
}


@pytest.mark.parametrize("dtype", ODD)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_are_floats(tmp_path, dtype, ending):
    module = torch.nn.Linear(4, 4, bias=False)
    before, odd = module.weight.clone(), {"weight": ODD[dtype](torch.ones(4, 4))}
    path = tmp_path / f"model.{ending}"
    (save_file if ending == "safetensors" else torch.save)(odd, path)
    with pytest.raises(ValueError, match=rf"model\.{ending}: .*weight is {dtype} \[4, 4\], not fl"):
        Naming().load_file(module, path, allow_unpinned=True)
    with torch.device("meta"):
        empty = torch.nn.Linear(4, 4, bias=False)
    if ending == "safetensors":
        with pytest.raises(ValueError, match=r"different \(weight is .* not float32"):
            assign_strictly(empty, path)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_have_another_precision(tmp_path, dtype):
    module = torch.nn.Linear(4, 4, bias=False)
    save_file({"weight": torch.ones(4, 4, dtype=dtype)}, tmp_path / "model.safetensors")
    Naming().load_file(module, tmp_path / "model.safetensors")
    assert torch.equal(module.weight, torch.ones(4, 4))


NOT_PLAIN = {
    "coo": lambda plain: plain.to_sparse(),
    "csr": lambda plain: plain.to_sparse_csr(),
    "quantized": lambda plain: torch.quantize_per_tensor(plain, 1.0, 0, torch.quint8),
    "meta": lambda plain: plain.to("meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own opinion of such tensors
@pytest.mark.parametrize("layout", NOT_PLAIN)
def test_pickled_tensors_are_plain(tmp_path, layout):
    torch.save({"weight": NOT_PLAIN[layout](torch.eye(4))}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin: weight is a .*; save it dense") as error:
        files.load_foreign(tmp_path / "model.bin", allow_unpinned=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_pickle_is_named(tmp_path, keep):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.bin: is not a plain checkpoint"):
        files.load_foreign(path, allow_unpinned=True)


def test_a_safetensors_file_with_another_hash_is_refused(tmp_path, whole):
    path = tmp_path / "whole.safetensors"
    assert files.load_checkpoint(path, hashlib.sha256(whole).hexdigest()).keys() == {"a"}
    with pytest.raises(ValueError, match="is pinned"):
        files.load_checkpoint(path, "0" * 64)


def test_a_folder_must_hold_one_checkpoint(tmp_path, whole):
    (tmp_path / "second.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"2 checkpoints \(second\.safetensors, whole"):
        files.load_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"contains no \.safetensors and no \.bin"):
        files.load_checkpoint(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        files.load_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"absent\.safetensors"):
        files.load_checkpoint(tmp_path / "absent.safetensors")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"x\.safetensors: cannot be written"):
        files.save_safetensors({"a": torch.ones(1)}, tmp_path / "file" / "x.safetensors")
