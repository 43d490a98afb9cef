"""BAGEL's checkpoints: the released names at full size, strict and memory-lean loading, export."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from reca.models import streaming
from reca.models.bagel import weights
from reca.models.checkpoint_io import load_safetensors, manifest_of, safetensors_manifest
from reca.models.registry import build_model, load_model
from tests.models import bagel_tiny as tiny
from tests.reference import golden_cases as golden

CONFIG = Path(__file__).parents[2] / "config" / "model" / "bagel_7b.yaml"


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return build_model("bagel", yaml.safe_load(CONFIG.read_text())["network"])


def save_bfloat16(model, path):
    """The network as RecA's file has it."""
    save_file({name: t.bfloat16() for name, t in model.official_state().items()}, path)


def shapes(manifest):
    return {name: tuple(entry[0]) for name, entry in manifest.items()}


# ---- full size, on meta ------------------------------------------------------------------------
@pytest.mark.parametrize("released", ["BAGEL-7B-MoT_ema", "BAGEL-RecA_model_bf16"])
def test_the_network_has_the_released_names_and_shapes(full_size, released):
    stored = golden.manifest("bagel", released)
    assert shapes(manifest_of(full_size.official_state())) == shapes(stored)
    assert len(stored) == 1223


def test_the_autoencoder_has_the_released_names_and_shapes(full_size):
    stored = golden.manifest("bagel", "BAGEL-7B-MoT_ae")
    assert shapes(manifest_of(weights.VAE.state(full_size.frozen.vae))) == shapes(stored)
    assert len(stored) == 244


def test_reca_trains_what_the_fact_sheet_counts(full_size):
    named = dict(full_size.named_parameters())
    trained = full_size.trainable_parameters()
    assert (len(trained), sum(named[n].numel() for n in trained)) == (401, 6_539_861_056)
    kept = Counter(named[name].dtype for name in trained)
    assert kept == {torch.float32: 401}
    frozen = {n: w for n, w in named.items() if n.startswith("network.") and n not in set(trained)}
    assert {weight.dtype for weight in frozen.values()} == {torch.bfloat16}
    tables = sum(b.numel() for b in full_size.network.buffers())
    assert sum(w.numel() for w in frozen.values()) + tables == 8_067_399_072


# ---- loading -----------------------------------------------------------------------------------
def in_shards(model, folder: Path, count: int) -> Path:
    """The model's network as the hub lays out large checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().clone() for name, t in model.official_state().items()}
    names = list(state)
    where = {name: f"model-{i % count + 1}-of-{count}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: state[n] for n in names if where[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


def test_shards_are_assigned_to_a_model_on_meta_without_a_second_copy(tmp_path, monkeypatch):
    model = tiny.model(tmp_path / "words")
    index = in_shards(model, tmp_path / "hub", 3)
    with torch.device("meta"):
        empty = build_model("bagel", tiny.network())
    handed_out: dict[str, int] = {}
    opened: list[str] = []
    original = streaming._tensors

    def watched(shard):
        opened.append(shard.name)
        for name, tensor in original(shard):
            handed_out[name] = tensor.data_ptr()
            yield name, tensor

    monkeypatch.setattr(streaming, "_tensors", watched)
    weights.load_network(empty.network, index)
    assert opened == sorted(opened) and len(opened) == 3  # one after another
    state = empty.network.state_dict()
    assert not any(tensor.is_meta for tensor in state.values())
    tables = {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}
    # the very memory that the file was mapped to, not a copy of it
    assert {n for n, t in state.items() if t.data_ptr() != handed_out[n]} == tables
    assert all(torch.equal(state[n], t) for n, t in model.official_state().items())


def test_a_bfloat16_file_keeps_frozen_weights_small_and_trained_ones_exact(tmp_path):
    model = tiny.model(tmp_path / "words")
    path = tmp_path / "model_bf16.safetensors"
    save_bfloat16(model, path)
    assert {kind for _, kind in safetensors_manifest(path).values()} == {"BF16"}
    with torch.device("meta"):
        lean = build_model("bagel", tiny.network(frozen_dtype="bfloat16"))
    weights.load_network(lean.network, path)
    kinds = {weights.is_trained(n): w.dtype for n, w in lean.network.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    for name, weight in lean.network.named_parameters():
        wanted = model.official_state()[name].bfloat16()
        assert torch.equal(weight.bfloat16(), wanted), name


def test_a_model_of_two_dtypes_draws_and_answers(tmp_path):
    from reca.core.rng import generator
    from reca.models.contract import Sampling

    model = tiny.model(tmp_path, frozen_dtype="bfloat16")
    features = model.encode(tiny.pictures(1), "draw")
    sampling = Sampling(3.0, 3)
    (image,) = model.generate(model.condition(["a"], features), None, sampling, [generator("x")])
    assert image.size == (16, 16)
    assert len(model.answer(["what there ?"], features, 3)) == 1


def test_training_a_model_of_two_dtypes_needs_bf16(tmp_path):
    from reca.core.rng import generator
    from reca.models.contract import reconstruction_loss

    model = tiny.model(tmp_path, frozen_dtype="bfloat16")
    features = model.encode(tiny.pictures(1), "draw")
    noise = model.sample_noise(1, generator("x"))
    with pytest.raises(ValueError, match=r"frozen_dtype is bfloat16.* set align.precision to bf16"):
        reconstruction_loss(model, ["what there ?"], features, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert reconstruction_loss(model, ["what there ?"], features, noise).total.isfinite()


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "table"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, fault):
    model = tiny.model(tmp_path / "words")
    state = {name: t.clone() for name, t in model.official_state().items()}
    name = "language_model.model.layers.1.mlp_moe_gen.up_proj.weight"
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state["ema_only.weight"] = torch.zeros(2)
    elif fault == "shape":
        state[name] = state[name][:, :-1].contiguous()
    else:
        name = "latent_pos_embed.pos_embed"
        state[name] = state[name] + 0.1
    path = tmp_path / "ema.safetensors"
    save_file(state, path)
    before = {n: t.clone() for n, t in model.official_state().items()}
    named = "ema_only.weight" if fault == "unexpected" else name
    with pytest.raises(ValueError, match=f"ema.safetensors.*{named}"):
        model.load(path)
    if fault != "table":
        after = model.official_state()
        assert all(torch.equal(after[n], t) for n, t in before.items())


def test_pickles_and_folders_of_several_checkpoints_are_refused(tmp_path):
    model = tiny.model(tmp_path / "words")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="not a safetensors file"):
        model.load(tmp_path / "model.bin")
    for name in ("ema", "model"):
        save_file({"x": torch.zeros(1)}, tmp_path / "two" / f"{name}.safetensors") if (
            tmp_path / "two"
        ).mkdir(exist_ok=True) is None else None
    with pytest.raises(ValueError, match="choose one"):
        model.load(tmp_path / "two")


def test_the_hubs_folder_and_a_reca_file_make_a_model(tmp_path):
    model = tiny.model(tmp_path / "hub")
    weights.NETWORK.save(model.network, tmp_path / "hub" / "ema.safetensors")
    weights.VAE.save(model.frozen.vae, tmp_path / "hub" / "ae.safetensors")
    base = build_model("bagel", tiny.network())
    base.load_parts({"weights": tmp_path / "hub"})
    assert torch.equal(base.network.vae2llm.weight, model.network.vae2llm.weight)
    with torch.no_grad():
        model.network.vae2llm.weight.add_(1)
    (tmp_path / "reca").mkdir()
    aligned = tmp_path / "reca" / "model_bf16.safetensors"
    save_bfloat16(model, aligned)
    again = build_model("bagel", tiny.network())
    hub = tmp_path / "hub"
    again.load_parts({"weights": aligned, "vae": hub, "tokenizer": hub})
    wanted = model.network.vae2llm.weight.bfloat16().float()
    assert torch.equal(again.network.vae2llm.weight, wanted)
    assert again.text.ids(["a red circle"])
    with pytest.raises(ValueError, match="weights, vae, tokenizer"):
        again.load_parts({"weights": hub, "clip": hub})


# ---- saving ------------------------------------------------------------------------------------
def test_a_saved_folder_loads_back_and_holds_official_names(tmp_path):
    model = tiny.model(tmp_path / "words")
    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    file = load_safetensors(tmp_path / "saved" / "model.safetensors")
    assert set(file) == set(model.official_state())
    vae = load_safetensors(tmp_path / "saved" / "ae.safetensors")
    assert vae["encoder.mid.attn_1.q.weight"].ndim == 4
    assert again.text.ids(["a red circle"]) == model.text.ids(["a red circle"])
