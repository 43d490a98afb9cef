"""Show-o's language model and tokenizer reproduce the reference, in numbers and in names."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from reca.models.checkpoint_io import manifest_of
from reca.models.common.attention import KeyValueCache
from reca.models.showo import magvit, network, weights
from reca.models.showo.clip import ClipTower
from reca.models.showo.config import ShowoConfig
from reca.toyworld.pretrain.tokenizer import commitment_loss, entropy_loss
from tests.reference import golden_cases as golden
from tests.reference.showo_config import config_of, golden_config, released


def showo_of(case: str) -> tuple[network.Showo, dict, dict]:
    described, tensors = golden.load("showo", case)
    model = network.Showo(golden_config(described["config"]))
    return golden.fill_(model, described["seed"]), described, tensors


# ---- language model -----------------------------------------------------------------------------
def phi_outputs(model: network.Showo, tensors: dict) -> dict[str, torch.Tensor]:
    """One forward pass with everything that the golden case looks at."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _module, _args, out: seen.update(
            {name: out[0] if type(out) is tuple else out}
        )

    layers = model.showo.model.layers
    layers[0].self_attn.q_layernorm.register_forward_hook(keep("layer0.q_after_layernorm"))
    layers[0].self_attn.k_layernorm.register_forward_hook(keep("layer0.k_after_layernorm"))
    layers[0].self_attn.register_forward_hook(keep("layer0.attn_out"))
    for i, layer in enumerate(layers):
        layer.register_forward_hook(keep(f"hidden_layer{i}"))
    allowed = tensors["attn_allowed"].bool()
    seen["hidden_final"] = model.hidden(tensors["input_ids"], allowed=allowed)
    seen["logits"] = model.head(seen["hidden_final"])
    return seen


@pytest.mark.parametrize("case", golden.cases("showo", __file__, "phi_lm*"))
def test_language_model(case):
    model, described, tensors = showo_of(case)
    ours = phi_outputs(model.train(), tensors)
    loss = F.cross_entropy(ours["logits"].flatten(0, 1), tensors["targets"].flatten())
    loss.backward()
    golden.assert_number("loss", loss.item(), described["loss"])
    parameters = dict(model.named_parameters())
    golden.assert_gradients(described, parameters)
    ours |= {
        name: parameters[name.removeprefix("grad.")].grad
        for name in tensors
        if name.startswith("grad.")
    }
    golden.assert_reproduces(tensors, ours, {"input_ids", "attn_allowed", "targets"})


@pytest.fixture
def tiny_showo() -> network.Showo:
    llm = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vq = magvit.MagvitConfig(24, (1, 2), (1, 1), (1, 2), (1, 1), 4)
    config = ShowoConfig(llm=llm, vq=vq, resolution=8, llm_vocab_size=20, endoftext=3)
    return golden.fill_(network.Showo(config), seed=1).eval()


def test_a_head_over_a_slice_is_a_slice_of_the_head(tiny_showo):
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    codes = tiny_showo.config.ids.codes
    sliced = tiny_showo.head(hidden, codes)
    assert sliced.shape[-1] == tiny_showo.config.codebook_size == 16
    torch.testing.assert_close(sliced, tiny_showo.head(hidden)[..., codes])


def test_ids_and_embeddings_and_both_mask_ranks_are_one_thing(tiny_showo):
    ids = torch.tensor([[1, 5, 7, 2], [4, 4, 9, 3]])
    allowed = torch.ones(2, 4, 4, dtype=torch.bool)
    by_ids = tiny_showo.hidden(ids, allowed=allowed)
    by_embeddings = tiny_showo.hidden(
        inputs_embeds=tiny_showo.embed(ids), allowed=allowed.unsqueeze(1)
    )
    assert torch.equal(by_ids, by_embeddings)


def test_left_padding_with_positions_changes_nothing(tiny_showo):
    ids = torch.tensor([[1, 5, 7, 2]])
    alone = tiny_showo.hidden(ids, allowed=torch.ones(1, 4, 4, dtype=torch.bool))
    padded = torch.cat([torch.full((1, 3), tiny_showo.config.ids.pad), ids], dim=1)
    allowed = torch.zeros(1, 7, 7, dtype=torch.bool)  # pad rows see nothing at all
    allowed[:, 3:, 3:] = True
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3]])
    hidden = tiny_showo.hidden(padded, allowed=allowed, position_ids=positions)
    assert hidden.isfinite().all()
    torch.testing.assert_close(hidden[:, 3:], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_sees_nothing_is_finite(tiny_showo, dtype):
    model = tiny_showo.to(dtype)
    hidden = model.hidden(torch.tensor([[1, 2]]), allowed=torch.zeros(1, 2, 2, dtype=torch.bool))
    hidden.sum().backward()
    assert hidden.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.showo.model.parameters())


def test_a_cache_continues_where_it_stopped(tiny_showo):
    ids = torch.tensor([[1, 5, 7, 2, 8]])
    allowed = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    whole = tiny_showo.hidden(ids, allowed=allowed)
    cache = KeyValueCache()
    first = tiny_showo.hidden(ids[:, :3], allowed=allowed[:, :3, :3], cache=cache)
    rest = tiny_showo.hidden(ids[:, 3:], allowed=allowed[:, 3:], cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole)


def test_a_mask_of_numbers_is_refused(tiny_showo):
    with pytest.raises(ValueError, match="must be bool"):
        tiny_showo.hidden(torch.tensor([[1]]), allowed=torch.ones(1, 1, 1))


# ---- tokenizer ----------------------------------------------------------------------------------
def magvit_outputs(model: magvit.Magvit, tensors: dict) -> dict[str, torch.Tensor]:
    """Encode, quantise, decode, with the intermediate activations of the golden case."""
    seen: dict[str, torch.Tensor] = {}
    block = model.encoder.down[0].block[0]
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: seen.update(block=out)),
        model.decoder.conv_in.register_forward_hook(lambda _m, _a, out: seen.update(conv_in=out)),
    ]
    z = model.encode(golden.images(tensors["images_u8"]))
    codes = model.codes(z)
    decoded = model.detokenise(codes, tuple(z.shape[2:]))
    for hook in hooks:
        hook.remove()
    height, width = tensors["encoder_block0_crop"].shape[2:]
    cell = model.config.down_sampling
    rect = tuple(side // cell for side in tensors["rect_decoded"].shape[2:])
    return {
        "z": z,
        "zq_sign": model.quantise(z),
        "codes": codes,
        "decoded": decoded,
        "decoder_conv_in": seen["conv_in"],
        "encoder_block0_crop": seen["block"][:, :, :height, :width],
        "rect_decoded": model.detokenise(tensors["rect_codes"], rect),
    }


@pytest.mark.parametrize("case", golden.cases("showo", __file__, "magvit_*"))
def test_tokenizer(case):
    described, tensors = golden.load("showo", case)
    config = magvit.MagvitConfig(**described["config"]["vq"])
    model = golden.fill_(magvit.Magvit(config), described["seed"])
    model.requires_grad_("loss_probe" in described)
    ours = magvit_outputs(model, tensors)
    stored_z = tensors["z"]
    golden.assert_number("min_abs_z", ours["z"].abs().min().item(), described["min_abs_z"], 1e-3)
    golden.assert_number(
        "quantizer_loss", commitment_loss(stored_z).item(), described["quantizer_loss"]
    )
    golden.assert_number("entropy_loss", entropy_loss(stored_z).item(), described["entropy_loss"])
    if "loss_probe" in described:
        probe = ours["decoded"].square().mean() + ours["z"].square().mean()
        probe.backward()
        golden.assert_number("loss_probe", probe.item(), described["loss_probe"])
        parameters = dict(model.named_parameters())
        golden.assert_gradients(described, parameters)
        ours |= {f"grad.{name}": p.grad for name, p in parameters.items()}
    golden.assert_reproduces(tensors, ours, {"images_u8", "rect_codes"})


def test_codes_and_signs_are_inverse_and_zero_is_bit_zero():
    model = magvit.Magvit(magvit.MagvitConfig(24, (1, 2), (1, 1), (1, 2), (1, 1), 3))
    every = torch.arange(8).view(1, 8)
    signs = model.from_codes(every, (2, 4))
    assert torch.equal(model.codes(signs), every)
    assert signs[0, :, 1, 0].tolist() == [1.0, -1.0, -1.0]  # code 4 = 0b100: channel 0 first
    assert model.codes(torch.zeros(1, 3, 1, 1)).item() == 0
    with pytest.raises(ValueError, match="do not fill"):
        model.from_codes(every)


def test_laptop_widths_and_the_gradient_through_the_quantiser():
    config = magvit.MagvitConfig(24, (1, 2, 64 / 24), (1, 1, 1), (1, 2, 64 / 24), (1, 1, 1), 6)
    assert (config.encoder_widths, config.down_sampling) == ((24, 48, 64), 4)
    model = golden.fill_(magvit.Magvit(config), seed=3)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = model.encode(image)
    zq = model.quantise(z)
    assert z.shape == (2, 6, 4, 4) and zq.unique().tolist() == [-1.0, 1.0]
    decoded = model.decode(zq)
    assert decoded.shape == image.shape
    decoded.square().mean().backward()
    assert model.encoder.conv_in.weight.grad.abs().max() > 0  # straight through the signs


def test_quantiser_losses_by_hand():
    certain = torch.tensor([9.0, -9.0]).view(2, 1, 1, 1)  # one bit, sure, used half and half
    assert entropy_loss(certain).item() == pytest.approx(-0.1 * 0.693147, rel=1e-4)
    stuck = torch.full((2, 1, 1, 1), 9.0, requires_grad=True)  # one bit that never changes
    entropy_loss(stuck).backward()
    assert stuck.grad.isfinite().all()
    assert commitment_loss(torch.full((1, 2, 1, 1), 3.0)).item() == pytest.approx(0.5)


# ---- full size ----------------------------------------------------------------------------------
def full_size(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        if name == "magvitv2":
            return magvit.Magvit(magvit.MagvitConfig())
        if name.startswith("clip"):
            return ClipTower(released("clip").tower)
        understanding = "clip" if "clip" in name else "vq"
        return network.Showo(released(understanding, 512))


NAMINGS = {
    "show-o": weights.NETWORK,
    "show-o-w-clip-vit": weights.NETWORK,
    "magvitv2": weights.MAGVIT,
    "clip-vit-large-patch14-336-vision": weights.CLIP,
}


@pytest.mark.parametrize("name", NAMINGS)
def test_full_size_names_and_shapes_are_the_released_ones(name):
    ours = manifest_of(NAMINGS[name].state(full_size(name)))
    assert ours == golden.manifest("showo", name)


def test_released_sizes():
    config = released("clip", 512)
    assert (config.num_vq_tokens, config.clip_tokens, config.vocab_size) == (1024, 576, 58498)
    ids = config.ids
    assert (ids.pad, ids.soi, ids.eoi, ids.t2i, ids.mmu) == (50295, 50296, 50297, 50300, 50301)
    assert (ids.first_image, ids.mask, ids.bos, ids.lvg) == (50305, 58497, 50256, 50304)


# ---- configuration ------------------------------------------------------------------------------
@pytest.mark.parametrize("understanding", ["clip", "vq"])
def test_a_config_survives_json(understanding):
    config = released(understanding, 512)
    assert config_of(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolutoin": 256}, "resolutoin = 256: unknown key"),
        ({"llm": {"hiden_size": 1}}, "llm.hiden_size = 1: unknown key; did you mean 'hidden_size'"),
        ({"vq": {"chanels": 1}}, "chanels = 1: unknown key"),
        ({"vq": {"enc_ch_mult": [1, 2]}}, "one entry per level"),
        ({"vq": {"ch": 10, "enc_ch_mult": [1, 1.25, 1, 1, 1]}}, "not a valid number of channels"),
        ({"resolution": 250}, "not a multiple"),
        ({"understanding": "both"}, "must be one of clip, vq"),
        ({"vq_condition": "third"}, "half, quarter, blur8, full"),
        ({"understanding": "clip"}, "clip_vision is missing"),
        ({"projector": [4, 8]}, "leave them out"),
        ({"endoftext": 60000}, "is not a text id"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        config_of(change)


def test_a_projector_must_fit_both_ends():
    described = asdict(released("clip")) | {"projector": [1024, 512]}
    with pytest.raises(ValueError, match="must map the CLIP width"):
        config_of(described)


def test_a_golden_config_with_other_ids_is_refused():
    described, _ = golden.load("showo", golden.cases("showo", __file__, "phi_lm*")[0])
    config = described["config"] | {"ids": described["config"]["ids"] | {"mask": 1}}
    with pytest.raises(ValueError, match="rules give"):
        golden_config(config)
