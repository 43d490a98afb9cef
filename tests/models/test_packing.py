"""Packed linear layers: the same numbers as plain ones, shared parameters, and where they do not apply."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from reca.models.common import packing
from reca.models.common.layers import GatedMlp, Mlp
from reca.models.harmon import network as networks
from reca.models.harmon.network import Block, Harmon
from tests.models import harmon_tiny
from tests.reference.harmon_config import config_of

needs_packing = pytest.mark.skipif(
    not packing.can_pack(torch.empty(1)), reason="this PyTorch has no oneDNN for its CPU"
)


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LEAST", 0)


LAYERS = (packing.PackedLinear, packing.PackedMlp, packing.PackedGatedMlp)


@pytest.fixture(scope="module")
def harmon() -> Harmon:
    torch.manual_seed(0)
    section = {k: v for k, v in harmon_tiny.network().items() if k != "options"}
    network = Harmon(config_of(section)).eval()
    return network.requires_grad_(False)


def packed_in(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if isinstance(part, LAYERS)}


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_layer_is_the_layer(rows: int, biased: bool) -> None:
    torch.manual_seed(rows)
    layer = nn.Linear(24, 40, bias=biased).requires_grad_(False)
    x = torch.randn(3, 2 * rows, 24)[:, ::2]  # not contiguous
    packed = packing.linear(layer.weight, layer.bias)
    assert isinstance(packed, packing.PackedLinear)
    torch.testing.assert_close(packed(x), layer(x))
    torch.testing.assert_close(packing.gelu(packed, x), F.gelu(layer(x)))
    torch.testing.assert_close(packing.silu(packed, x), F.silu(layer(x)))
    other = torch.randn(3, rows, 40)
    torch.testing.assert_close(packed.times(x, other), layer(x) * other)


@needs_packing
@pytest.mark.parametrize("library", [False, True])
def test_a_gated_mlp(library: bool) -> None:
    """Ours, and that of transformers' Llama, which Janus-Pro is made of."""
    torch.manual_seed(0)
    sizes = LlamaConfig(hidden_size=32, intermediate_size=48)
    mlp = (LlamaMLP(sizes) if library else GatedMlp(32, 48)).requires_grad_(False)
    packed = packing.packed(mlp)
    assert isinstance(packed, packing.PackedGatedMlp)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(packed(x), mlp(x))


@needs_packing
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu"])
def test_an_mlp(activation: str) -> None:
    """The GELUs run in the pass of the first layer; another activation runs between packed layers."""
    torch.manual_seed(0)
    mlp = Mlp(24, 40, activation).requires_grad_(False)
    packed = packing.packed(mlp)
    assert isinstance(packed, packing.PackedMlp) == (activation != "quick_gelu")
    assert isinstance(packed.get_submodule("fc2"), packing.PackedLinear)
    x = 3 * torch.randn(2, 5, 24)
    torch.testing.assert_close(packed(x), mlp(x))


def test_an_exchanged_part_leaves_the_module_alone() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    part = nn.Identity()
    copied = packing.exchanged(module, "0.1", part)
    assert copied.get_submodule("0.1") is part and module.get_submodule("0.1") is not part
    assert copied.get_submodule("0.0") is module.get_submodule("0.0")
    assert copied.get_submodule("1") is module.get_submodule("1")


@needs_packing
def test_the_twin_computes_the_same_and_leaves_the_network_alone(harmon: Harmon) -> None:
    before = {name: type(part) for name, part in harmon.named_modules()}
    twin = networks.for_sampling(harmon)
    assert {name: type(part) for name, part in harmon.named_modules()} == before
    assert any(name.startswith("llm.model.layers") for name in packed_in(twin))
    assert any(name.startswith("mar.encoder_blocks") for name in packed_in(twin))
    assert not any(name.startswith(("mar.diffloss", "llm.lm_head")) for name in packed_in(twin))
    assert twin.llm.model.embed_tokens.weight is harmon.llm.model.embed_tokens.weight
    latents = torch.randn(2, 16, 4)
    with torch.no_grad():
        expected = harmon.hidden(harmon.understand(latents, (4, 4)))
        torch.testing.assert_close(twin.hidden(twin.understand(latents, (4, 4))), expected)


@needs_packing
def test_a_twin_shows_the_weights_of_its_time(harmon: Harmon) -> None:
    layer, x = harmon.proj_in[0], torch.randn(3, 24)
    old, twin = layer(x), packing.packed(harmon.proj_in)
    with torch.no_grad():
        layer.weight.mul_(2)
    try:
        torch.testing.assert_close(twin[0](x), old)
        torch.testing.assert_close(packing.packed(harmon.proj_in)[0](x), layer(x))
    finally:
        with torch.no_grad():
            layer.weight.div_(2)


@needs_packing
def test_large_parts_stay_as_they_are(harmon: Harmon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed form is a second copy: parts over the limit do without."""
    monkeypatch.setattr(packing, "LIMIT", packing.size(harmon.llm) - 1)
    parts = {name.split(".")[0] for name in packed_in(networks.for_sampling(harmon))}
    sizes = {name: packing.size(part) for name, part in harmon.named_children()}
    assert parts == {name for name, size in sizes.items() if size < packing.size(harmon.llm)}
    assert "llm" not in parts and parts


def test_where_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    half = nn.Linear(4, 4).bfloat16()
    assert packing.packed(half) is half and not packing.can_pack(half.weight)
    assert not packing.can_pack(torch.empty(4, 4, device="meta"))
    layer = nn.Linear(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "LEAST", 17)
        assert packing.packed(layer) is layer
    monkeypatch.setattr(packing, "_has_operators", lambda: False)
    plain = packing.linear(layer.weight, layer.bias)
    assert packing.packed(layer) is layer and type(plain) is nn.Linear
    x = torch.randn(3, 4)
    torch.testing.assert_close(plain(x), layer(x))
    torch.testing.assert_close(packing.gelu(plain, x), F.gelu(layer(x)))
    torch.testing.assert_close(packing.silu(plain, x), F.silu(layer(x)))


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 16])
def test_a_block_for_few_places_is_the_whole_block(rows: int) -> None:
    """Up to width / heads - 1 = 11 places the keys and values are never made; above that they are."""
    config = config_of({k: v for k, v in harmon_tiny.network().items() if k != "options"}).mar
    torch.manual_seed(rows)
    block = Block(24, 2, config)
    nn.init.normal_(block.attn.qkv.bias)
    nn.init.normal_(block.attn.qkv.weight, std=0.3)
    x = torch.randn(2, 20, 24)
    places = torch.stack([torch.randperm(20)[:rows] for _ in range(2)])
    expected = torch.stack([one[at] for one, at in zip(block(x), places, strict=True)])
    torch.testing.assert_close(block(x, places), expected)
    torch.testing.assert_close(block(x, qkv=block.questions(x)), block(x))
