"""OpenUni's checkpoints: the released names at full size, declared subsets, InternVL3 under three kinds of names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from reca.core.artifacts import sha256_file
from reca.models.checkpoint_io import load_safetensors, manifest_of
from reca.models.openuni import weights
from reca.models.registry import build_model, load_model
from tests.models import openuni_tiny as tiny
from tests.reference import golden_cases as golden

CONFIG = Path(__file__).parents[2] / "config" / "model"
# tensors, parameters, trained (openuni.md a1), and tensors with weight decay and without (openuni.md e)
SIZES = {
    "b_512": (1659, 1_896_851_779, 646_408_480, (382, 265)),
    "l_512": (1555, 4_231_515_459, 1_830_307_744, (286, 209)),
    "l_1024": (1635, 4_231_694_659, 1_830_486_944, None),
}


def section(name):
    """The `network` section of a configuration, with those that it extends."""
    read = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    base = [d for d in read.get("defaults", []) if d != "_self_"]
    found = section(base[0]) if base else {}
    for key, value in read.get("network", {}).items():
        found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found


@pytest.fixture(scope="module", params=SIZES)
def full_size(request):
    with torch.device("meta"):
        return request.param, build_model("openuni", section(f"openuni_{request.param}"))


# ---- full size, on meta ------------------------------------------------------------------------
def test_names_and_shapes_are_the_released_ones(full_size):
    name, model = full_size
    stored = golden.manifest("openuni", f"openuni_{name}")
    ours = {
        **model.official_state(),
        **weights.READER.state(model.network.lmm),
        **{f"{weights.VAE}{n}": t for n, t in model.frozen.vae.state_dict().items()},
    }
    found = manifest_of(ours)
    assert {n: shape for n, (shape, _) in found.items()} == {n: s for n, (s, _) in stored.items()}
    tensors, parameters, trained, decayed = SIZES[name]
    named = dict(model.named_parameters())
    assert len(found) == tensors
    assert sum(p.numel() for p in named.values()) == parameters
    assert sum(named[n].numel() for n in model.trainable_parameters()) == trained
    groups = model.decay_groups()
    assert sorted((*groups.decay, *groups.no_decay)) == sorted(model.trainable_parameters())
    if decayed is not None:
        assert (len(groups.decay), len(groups.no_decay)) == decayed
    kept = {named[n].dtype for n in model.trainable_parameters()}
    assert kept == {torch.float32} and model.network.lmm.dtype == torch.bfloat16


# ---- released files ----------------------------------------------------------------------------
def released(model, folder, stage):
    """A pickle as the authors write it: what was trained, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.official_state()
    kept = weights.STAGE_1 if stage == 1 else weights.TRAINED
    path = folder / "openuni.pth"
    torch.save({n: t.bfloat16() for n, t in state.items() if n.startswith(kept)}, path)
    return path


def hubs(model, folder, style="native"):
    """The folders of InternVL3 (with its tokenizer), SANA and the DC-AE as their hubs lay them out."""
    vision, sana, vae = (folder / name for name in ("vision", "sana", "vae"))
    for made in (vision, sana / "transformer", vae):
        made.mkdir(parents=True)
    lmm = model.network.lmm.state_dict()
    if style == "older":  # of transformers before 4.52
        swapped = {
            "model.": "",
            "language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
        for old, new in swapped.items():
            lmm = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in lmm.items()}
    elif style == "official":
        lmm = {
            n.removeprefix("lmm."): t for n, t in weights.READER.state(model.network.lmm).items()
        }
    save_file({n: t.clone() for n, t in lmm.items()}, vision / "model.safetensors")
    model.text.tokenizer.save_pretrained(str(vision))
    file = "diffusion_pytorch_model.safetensors"
    save_file(model.network.transformer.state_dict(), sana / "transformer" / file)
    save_file(model.frozen.vae.state_dict(), vae / file)
    return {"vision": vision, "generator": sana, "image_tokenizer": vae}


def same(ours, theirs, prefix, exact=True):
    theirs = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if name.startswith(prefix):
            wanted = theirs[name] if exact else theirs[name].bfloat16().float()
            assert torch.equal(tensor, wanted), name


@pytest.mark.parametrize("style", ["native", "older", "official"])
def test_stage_1_takes_the_rest_from_the_hubs(tmp_path, style):
    model = tiny.model(tmp_path / "words")
    path = released(model, tmp_path / "file", 1)
    parts = {"weights": path, **hubs(model, tmp_path, style)}
    again = build_model("openuni", tiny.network())
    again.load_parts(parts, sha256={"weights": sha256_file(path)})
    same(again.network, model.network, weights.STAGE_1, exact=False)
    same(again.network, model.network, ("lmm.", weights.GENERATOR))
    same(again.frozen, model.frozen, "")
    assert again.text.ids(["a red circle"])
    del parts["generator"]
    with pytest.raises(
        ValueError, match=r"openuni\.pth: is of stage 1 and holds no SANA; give generator"
    ):
        again.load_parts(parts, allow_unpinned=True)


def test_stage_2_brings_its_own_sana(tmp_path):
    model = tiny.model(tmp_path / "words")
    parts = hubs(model, tmp_path)
    with torch.no_grad():
        model.network.transformer.proj_out.weight.add_(1)
    path = released(model, tmp_path / "file", 2)
    for given in (parts, {k: v for k, v in parts.items() if k != "generator"}):
        again = build_model("openuni", tiny.network())
        again.load_parts({"weights": path, **given}, allow_unpinned=True)
        same(again.network, model.network, weights.TRAINED, exact=False)


def test_stage_1_itself_starts_from_sana_with_everything_else_new(tmp_path):
    model = tiny.model(tmp_path / "words")
    parts = hubs(model, tmp_path)
    parts["weights"] = parts.pop("generator") / "transformer/diffusion_pytorch_model.safetensors"
    made = []
    for _ in range(2):
        again = build_model("openuni", tiny.network())
        again.load_parts(parts)
        same(again.network, model.network, ("lmm.", weights.GENERATOR))
        made.append(again)
    same(made[0].network, made[1].network, weights.STAGE_1)
    assert not torch.equal(made[0].network.meta_queries, model.network.meta_queries)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "half of SANA"])
def test_a_released_file_that_does_not_fit_changes_nothing(tmp_path, fault):
    model = tiny.model(tmp_path / "words")
    state = {name: t.clone() for name, t in model.official_state().items()}
    name = "connector.layers.0.mlp.fc1.weight"
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        name = "connector.layers.0.mlp.fc3.weight"
        state[name] = torch.zeros(2)
    elif fault == "shape":
        state[name] = state[name][:, :-1].contiguous()
    else:
        name = "transformer.proj_out.weight"
        del state[name]
    path = tmp_path / "openuni.safetensors"
    save_file(state, path)
    before = {n: t.clone() for n, t in model.official_state().items()}
    with pytest.raises(ValueError, match=f"openuni.safetensors.*{name}"):
        model.load(path)
    assert all(torch.equal(before[n], t) for n, t in model.official_state().items())


def test_frozen_weights_in_a_released_file_are_reported_and_left_out(tmp_path, caplog):
    model = tiny.model(tmp_path / "words")
    path = tmp_path / "openuni.safetensors"
    held = model.official_state() | {"vae.encoder.conv_in.bias": torch.zeros(8)}
    save_file({name: t.clone() for name, t in held.items()}, path)
    model.load(path)
    assert "1 tensors are skipped: vae.encoder.conv_in.bias" in caplog.text
    with pytest.raises(
        ValueError, match="OpenUni requires weights, vision, image_tokenizer, tokenizer"
    ):
        model.load_parts({"weights": path, "clip": tmp_path})


# ---- saving ------------------------------------------------------------------------------------
def test_a_saved_folder_loads_back_and_holds_official_names(tmp_path):
    model = tiny.model(tmp_path / "words", frozen_dtype="bfloat16")
    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(load_safetensors(tmp_path / "saved" / "model.safetensors")) == set(
        model.official_state()
    )
    reader = load_safetensors(tmp_path / "saved" / "lmm.safetensors")
    assert reader["lmm.vision_model.encoder.layers.0.attn.qkv.weight"].shape == (48, 16)
    assert again.text.ids(["a red circle"]) == model.text.ids(["a red circle"])
