"""Our transformers are those of the library: names, initial weights, results and gradients, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reca.models.bagel.config import VisionConfig
from reca.models.bagel.vision import VisionTower
from reca.models.common.attention import KeyValueCache, rotate
from reca.models.common.embeddings import sincos_table, timestep_code
from reca.models.common.layers import ACTIVATIONS, GatedMlp, RMSNorm, check_activation
from reca.models.harmon import config as harmon
from reca.models.harmon.qwen2 import Qwen2ForCausalLM
from reca.models.showo import attention, clip
from reca.models.showo import config as showo
from reca.models.showo.network import additive_mask
from reca.models.showo.phi import PhiForCausalLM
from tests.models.showo_tiny import pictures

VOCABULARY, LENGTH = 40, 7
SIZES: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
HEADS = {"own heads": (4, 4), "shared heads": (6, 2)}
TOWER = SIZES | {"num_attention_heads": 4, "image_size": 12, "patch_size": 4}


def phi(heads: int, shared: int) -> tuple[nn.Module, nn.Module]:
    from transformers import PhiConfig
    from transformers import PhiForCausalLM as Theirs

    sizes = SIZES | {"num_attention_heads": heads, "num_key_value_heads": shared}
    config = PhiConfig(**sizes, vocab_size=VOCABULARY, qk_layernorm=True)
    theirs = twin(lambda: Theirs(config))
    for layer in theirs.model.layers:  # the same function in one operation
        layer.mlp.activation_fn = nn.GELU(approximate="tanh")
    theirs.set_attn_implementation("sdpa")
    ours = twin(lambda: PhiForCausalLM(showo.LanguageConfig(**sizes), VOCABULARY))
    return ours, theirs


def qwen2(heads: int, shared: int) -> tuple[nn.Module, nn.Module]:
    from transformers import Qwen2Config
    from transformers import Qwen2ForCausalLM as Theirs

    sizes = SIZES | {"num_attention_heads": heads, "num_key_value_heads": shared}
    sizes |= {"vocab_size": VOCABULARY, "rope_theta": 1e4, "initializer_range": 0.1}
    config = Qwen2Config(**sizes, tie_word_embeddings=True)
    theirs = twin(lambda: Theirs(config))
    theirs.set_attn_implementation("sdpa")
    return twin(lambda: Qwen2ForCausalLM(harmon.LanguageConfig(**sizes))), theirs


def twin(build: Callable[[], Any]) -> Any:
    """A module of seed 5; the generator afterwards is that of its twin, too."""
    torch.manual_seed(5)
    built = build()
    built.next_number = torch.rand(())
    return built


Build = Callable[[int, int], tuple[Any, Any]]
models = pytest.mark.parametrize("build", [phi, qwen2])
any_heads = pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_same(parameter.grad, wanted[name].grad)


@models
@any_heads
def test_names_initial_weights_and_random_numbers(build: Build, heads: tuple[int, int]) -> None:
    ours, theirs = build(*heads)
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in state.items():
        assert_same(tensor, wanted[name])
    assert_same(ours.next_number, theirs.next_number)


def seen_by(padding: int) -> Tensor:
    """[2, T]: all of the first row, and the second without its last `padding` tokens."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, LENGTH - padding :] = 0
    return mask


def phi_results(ours: Any, theirs: Any, x: Tensor, mask: Tensor, positions: Tensor) -> list[Tensor]:
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & mask.bool()[:, None]
    additive = additive_mask(allowed, x.dtype)
    wanted = theirs.model(
        inputs_embeds=x, attention_mask=additive, position_ids=positions, use_cache=False
    )
    return [
        ours.model(x, positions, attention.dense(additive)),
        wanted.last_hidden_state,
    ]


def qwen2_results(
    ours: Any, theirs: Any, x: Tensor, mask: Tensor, positions: Tensor
) -> list[Tensor]:
    wanted = theirs.model(
        inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False
    )
    return [ours.model(x, positions, mask), wanted.last_hidden_state]


RESULTS = {phi: phi_results, qwen2: qwen2_results}


@models
@any_heads
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_results_and_gradients(
    build: Build, heads: tuple[int, int], padding: int, dtype: torch.dtype
) -> None:
    ours, theirs = (model.to(dtype) for model in build(*heads))
    x = torch.randn(2, LENGTH, 48).to(dtype)
    mask = seen_by(padding)
    positions = torch.arange(LENGTH).expand(2, -1) + torch.tensor([[0], [5]])
    if dtype != torch.float32:  # theirs rounds its frequencies with the weights
        positions = torch.zeros_like(positions)
    found, wanted = RESULTS[build](ours, theirs, x, mask, positions)  # type: ignore[index]
    real = mask.bool()
    assert_same(found[real], wanted[real])
    assert_same(ours.lm_head(found), theirs.lm_head(wanted))
    for model, result in ((ours, found), (theirs, wanted)):
        model.lm_head(result[real]).float().square().sum().backward()
    assert_same_gradients(ours, theirs)


@any_heads
@torch.no_grad()
def test_qwen2_goes_on_from_a_cache(heads: tuple[int, int]) -> None:
    """A prompt, several tokens at once, rows chosen anew, tokens dropped, and one token."""
    from transformers import DynamicCache

    ours, theirs = qwen2(*heads)
    cache, their_cache = KeyValueCache(), DynamicCache()

    def step(x: Tensor, mask: Tensor | None) -> None:
        wanted = theirs.model(
            inputs_embeds=x, attention_mask=mask, past_key_values=their_cache, use_cache=True
        )
        assert_same(ours.model(x, mask=mask, cache=cache), wanted.last_hidden_state)

    step(torch.randn(2, LENGTH, 48), None)
    cache.select(torch.tensor([1, 0, 1]))
    their_cache.batch_select_indices(torch.tensor([1, 0, 1]))
    mask = torch.ones(3, LENGTH + 4, dtype=torch.long)
    mask[0, LENGTH - 2 : LENGTH] = 0
    step(torch.randn(3, 4, 48), mask)
    cache.drop(4)
    their_cache.crop(-4)
    assert cache.length == LENGTH
    step(torch.randn(3, 2, 48), None)
    for hidden in (mask[:, : LENGTH + 3], None):  # one token, with keys hidden and without
        step(torch.randn(3, 1, 48), hidden)
        cache.drop(1)
        their_cache.crop(-1)


@torch.no_grad()
def test_phi_goes_on_from_a_cache() -> None:
    from transformers import DynamicCache

    ours, theirs = phi(4, 4)
    cache, their_cache = KeyValueCache(), DynamicCache()
    for length in (LENGTH, 3, 1):
        x = torch.randn(2, length, 48)
        allowed = torch.rand(2, length, cache.length + length) < 0.8
        additive = additive_mask(allowed, x.dtype)
        wanted = theirs.model(
            inputs_embeds=x, attention_mask=additive, past_key_values=their_cache, use_cache=True
        )
        found = ours.model(x, None, attention.dense(additive), cache)
        assert_same(found, wanted.last_hidden_state)


# ---- vision --------------------------------------------------------------------------------------
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_clip(hidden_act: str) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = showo.TowerConfig(**TOWER, hidden_act=hidden_act)
    ours = clip.ClipTower(config)
    theirs = CLIPVisionModel(CLIPVisionConfig(**asdict(config))).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(3, 3, 12, 12)
    wanted = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert_same(ours(pixels), wanted)
    with pytest.raises(ValueError, match=r"CLIP takes 12 x 12 pixels, not \[12, 8\]"):
        ours(torch.randn(1, 3, 12, 8))


def test_default_sizes_are_those_of_the_library() -> None:
    from transformers import CLIPVisionConfig, PhiConfig, Qwen2Config

    ours, theirs = asdict(showo.TowerConfig()), CLIPVisionConfig()
    assert ours == {name: getattr(theirs, name) for name in ours}
    phi_sizes, rope = showo.LanguageConfig(), PhiConfig().rope_parameters
    assert (phi_sizes.rope_theta, phi_sizes.partial_rotary_factor) == (
        rope["rope_theta"],
        rope["partial_rotary_factor"],
    )
    without_theta = harmon.HarmonConfig(llm={}).language
    assert without_theta.rope_theta == Qwen2Config().rope_parameters["rope_theta"]


def test_siglip() -> None:
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipEncoder

    described = SiglipVisionConfig(**TOWER)
    described._attn_implementation = "sdpa"
    theirs = twin(lambda: SiglipEncoder(described))
    ours = twin(lambda: VisionTower(VisionConfig(**TOWER)).vision_model.encoder)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 48)
    masks = (None, (torch.rand(2, 1, 9, 9) < 0.7) | torch.eye(9, dtype=torch.bool))
    for mask in masks:
        assert_same(ours(x, mask), theirs(inputs_embeds=x, attention_mask=mask).last_hidden_state)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with pytest.raises(ValueError, match="5 attention heads do not divide the width 48"):
        VisionTower(VisionConfig(**TOWER | {"num_attention_heads": 5}))


def test_cropping_is_clips() -> None:
    from transformers import CLIPImageProcessorPil

    side = 12
    size, crop = {"shortest_edge": side}, {"height": side, "width": side}
    processor = CLIPImageProcessorPil(size=size, crop_size=crop)
    images = [
        image.resize(shape)
        for image, shape in zip(
            pictures(6, 40), [(12, 12), (13, 12), (12, 15), (33, 40), (80, 31), (7, 9)], strict=True
        )
    ]
    wanted = processor(images, return_tensors="pt")["pixel_values"]
    assert_same(torch.stack(clip.crops(images, side)), wanted)


# ---- parts ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_qwen2s_parts_in_bagel(dtype: torch.dtype) -> None:
    from transformers import Qwen2Config
    from transformers.models.qwen2 import modeling_qwen2 as library

    mlp = GatedMlp(8, 12).to(dtype)
    theirs = library.Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=12)).to(dtype)
    theirs.load_state_dict(mlp.state_dict())
    norm, their_norm = RMSNorm(8, 1e-6).to(dtype), library.Qwen2RMSNorm(8, 1e-6).to(dtype)
    x = torch.randn(2, 5, 8).to(dtype)
    assert_same(mlp(x), theirs(x))
    assert_same(norm(x), their_norm(x))
    cos, sin = torch.randn(2, 1, 1, 8)
    q, k = library.apply_rotary_pos_emb(x[:, None], x[:, None], cos, sin)
    assert_same(rotate(x[:, None], (cos, sin)), q)
    assert_same(q, k)


def test_activations() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 99)
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(function(x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"network\.llm\.hidden_act is 'gule'; known: gelu,"):
        check_activation("network.llm.hidden_act", "gule")


@pytest.mark.parametrize(("side", "width"), [(4, 16), (3, 24), (70, 64)])
def test_sines_and_cosines_are_those_of_diffusers(side: int, width: int) -> None:
    from diffusers.models import embeddings

    table = embeddings.get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
    assert_same(sincos_table(side, width), table.float())
    t = torch.rand(5)
    wanted = embeddings.get_timestep_embedding(
        t, width, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    assert_same(timestep_code(t, width), wanted)
