"""BAGEL's samplers and decoding against the official inference: caches, velocities, guidance, trajectories."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from reca.models.bagel.context import (
    Context,
    clean_block,
    empty,
    extend,
    stacked,
    text_block,
    velocity,
    vit_block,
)
from reca.models.bagel.sampler import (
    FlowOptions,
    GuidedVelocity,
    editing_contexts,
    greedy,
    guided,
    sample,
    times,
)
from reca.models.bagel.vision import unpatchify
from tests.reference import bagel_cases as bagel
from tests.reference import golden_cases as golden

T2I = golden.cases("bagel", __file__, "sampler_t2i*")
EDIT = golden.cases("bagel", __file__, "sampler_edit*")
DECODE = golden.cases("bagel", __file__, "understanding_decode*")


def time_of(described: dict, name: str) -> float:
    """When a stored velocity was taken: the json says `... t=0.7 ...` in words."""
    return float(re.search(r"t=(\d+(?:\.\d+)?)", described["tensors"][name]["what"])[1])


def guided_labels(stored, ending: str) -> list[tuple[str, str, float]]:
    """Stored name, renormalisation and number of each guided velocity: `v_guided_channel_img1.5`."""
    pattern = re.compile(rf"v_guided_(.+)_{ending}([\d.]+)")
    named = [name for name in stored if name.startswith("v_guided")]
    return [(n, m[1], float(m[2])) for n in named for m in [pattern.fullmatch(n)]]


def rows_of(context: Context, index: slice) -> Context:
    """Some rows of a context."""
    kept = tuple((k[index], v[index]) for k, v in context.kept)
    return Context(kept, context.valid[index], context.position[index])


def options_of(sampler: dict, **more) -> FlowOptions:
    settings = {"steps": sampler["steps"], "timestep_shift": sampler["shift"]}
    settings |= {"interval": tuple(sampler["interval"]), "guidance": sampler.get("cfg", 1.0)}
    return FlowOptions(**{**settings, **more})


class TextToImage:
    """A case with one prompt and with two; the two are packed officially and padded here."""

    def __init__(self, name: str, which: str) -> None:
        described, stored = golden.load("bagel", name)
        self.model, self.which = bagel.model_of(described), which
        self.network, self.sampler = self.model.network, described["sampler"]
        self.time = time_of(described, f"{which}.v_cond")
        self.stored = {k[len(which) + 1 :]: v for k, v in stored.items() if k.startswith(which)}
        prompts = self.sampler["prompts"]
        self.prompts = prompts[:1] if which == "one" else prompts
        stride = self.model.config.stride
        self.grid = (self.sampler["size"][0] // stride, self.sampler["size"][1] // stride)
        self.ids = bagel.latent_ids(self.model, self.grid)
        with torch.no_grad():
            start = empty(self.network, len(self.prompts))
            self.full = extend(self.network, start, [text_block(self.network, self.prompts)])
            self.other = start

    def rows(self, flat: Tensor) -> Tensor:
        return flat.unflatten(0, (len(self.prompts), -1))

    def noise(self) -> Tensor:
        return self.rows(self.stored["init_noise"])


@lru_cache
def t2i_of(name: str, which: str) -> TextToImage:
    return TextToImage(name, which)


@pytest.fixture(params=[(name, which) for name in T2I for which in ("one", "two")])
def t2i(request) -> TextToImage:
    return t2i_of(*request.param)


def real(context: Context, layer: int, part: int) -> Tensor:
    """Kept keys (0) or values (1) of a layer without padding, rows one after another."""
    return context.kept[layer][part][context.valid]


def test_contexts_keep_the_stored_keys_and_values(t2i):
    framed = torch.cat([torch.tensor(_framed(t2i, prompt)) for prompt in t2i.prompts])
    golden.assert_same("ids", framed, t2i.stored["context_ids"])
    golden.assert_same("k", real(t2i.full, 0, 0), t2i.stored["context_key_layer0"])
    golden.assert_same("v", real(t2i.full, 1, 1), t2i.stored["context_value_layer1"])
    tokens = 2 + t2i.grid[0] * t2i.grid[1]
    for name, context in (("", t2i.full), ("_uncond", t2i.other)):
        found = context.position.repeat_interleave(tokens)
        golden.assert_same(name, found, t2i.stored[f"query_position_ids{name}"])


def _framed(t2i: TextToImage, prompt: list[int]) -> list[int]:
    special = t2i.model.config.special
    return [special.bos, *prompt, special.eos]


@torch.no_grad()
def test_velocities_and_every_renormalisation(t2i):
    x = t2i.noise()
    t = torch.full((len(x),), t2i.time)
    v, other = (velocity(t2i.network, context, x, t, t2i.ids) for context in (t2i.full, t2i.other))
    golden.assert_same("v_cond", v.flatten(0, 1), t2i.stored["v_cond"])
    golden.assert_same("v_uncond", other.flatten(0, 1), t2i.stored["v_uncond"])
    both = GuidedVelocity(t2i.network, t2i.full, [t2i.other], t2i.ids)(x, t2i.time, True)
    torch.testing.assert_close(both[0], v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], other, rtol=1e-4, atol=1e-5)
    for name, renorm, least in guided_labels(t2i.stored, "min"):
        options = options_of(t2i.sampler, renormalise=renorm, renorm_min=least, norm_over="pack")
        found = guided((v, other, None), options).flatten(0, 1)
        golden.assert_same(name, found, t2i.stored[name])


@torch.no_grad()
def test_trajectory_and_picture(t2i):
    options = options_of(t2i.sampler, norm_over="pack")
    found = times(options.steps, options.timestep_shift)[:-1]
    golden.assert_same("times", found, t2i.stored["timesteps"])
    drawn = GuidedVelocity(t2i.network, t2i.full, [t2i.other], t2i.ids)
    x, trajectory = sample(drawn, t2i.noise(), options)
    for step, stored in enumerate(t2i.stored["trajectory"]):
        golden.assert_same(f"x before {step}", trajectory[step].flatten(0, 1), stored)
    golden.assert_same("final", x.flatten(0, 1), t2i.stored["final_latent"])
    latent = unpatchify(x[:1], t2i.grid, t2i.model.config.latent_patch_size)
    golden.assert_same("latent", latent, t2i.stored["unpatchified_latent0"])
    from reca.models.bagel.vision import decoded

    pixels = decoded(t2i.model.frozen.vae, latent, t2i.model.config.vae)
    golden.assert_same("image", pixels, t2i.stored["image0"])


@torch.no_grad()
def test_norms_over_each_image_do_not_mix_a_pack(t2i):
    """Our default: a picture does not depend on what shares its batch; for one picture it is the official rule."""
    options = options_of(t2i.sampler)
    x, _ = sample(GuidedVelocity(t2i.network, t2i.full, [t2i.other], t2i.ids), t2i.noise(), options)
    for row in range(len(t2i.prompts)):
        rows = slice(row, row + 1)
        alone = GuidedVelocity(
            t2i.network, rows_of(t2i.full, rows), [rows_of(t2i.other, rows)], t2i.ids
        )
        own, _ = sample(alone, t2i.noise()[rows], options)
        torch.testing.assert_close(x[rows], own, rtol=1e-4, atol=1e-5)
    if t2i.which == "one":
        golden.assert_same("final", x.flatten(0, 1), t2i.stored["final_latent"])


# ---- editing -----------------------------------------------------------------------------------
class Editing:
    """A case of editing: three contexts of one picture and one text."""

    def __init__(self, name: str) -> None:
        described, self.stored = golden.load("bagel", name)
        self.model, self.sampler = bagel.model_of(described), described["sampler"]
        self.network, self.time = self.model.network, time_of(described, "v_full")
        stride = self.model.config.stride
        self.grid = tuple(n // stride for n in self.sampler["size"])
        self.ids = bagel.latent_ids(self.model, self.grid)

    def options(self, **more) -> FlowOptions:
        settings = {"guidance": self.sampler["cfg_text"], "image_guidance": self.sampler["cfg_img"]}
        return options_of(self.sampler, **{**settings, **more})

    def contexts(self) -> list[Context]:
        frozen = self.model.frozen
        moments = frozen.moments(self.stored["source_image_vae"].unsqueeze(0))
        clean = frozen.latents(moments, self.stored["vae_posterior_noise"])
        return editing_contexts(
            self.network, clean, self.vit(), [self.sampler["prompt"]], self.options()
        )

    def clean(self) -> Tensor:
        frozen = self.model.frozen
        moments = frozen.moments(self.stored["source_image_vae"].unsqueeze(0))
        return frozen.latents(moments, self.stored["vae_posterior_noise"])

    def vit(self):
        pixels = self.stored["source_image_vit"]
        states = bagel.vit_states(self.model, [pixels]).unsqueeze(0)
        patch = self.model.config.vit.patch_size
        grid = torch.tensor([[pixels.shape[1] // patch, pixels.shape[2] // patch]])
        return vit_block(self.network, states, grid)


@pytest.mark.parametrize("name", EDIT)
@torch.no_grad()
def test_editing_contexts(name):
    case = Editing(name)
    network, stored = case.network, case.stored
    full, no_text, no_image = case.contexts()
    first = extend(network, empty(network, 1), [clean_block(case.network, case.clean())])
    # ours holds und before gen tokens: SOI, EOI, latents
    golden.assert_same("1", _sequence(first, 1), stored["ctx1_key_layer1"])
    size = len(stored["ctx1_key_layer1"])
    for label, context in (("ctx2", no_text), ("ctx3", full)):
        keys = context.kept[1][0][0]
        found = torch.cat([_sequence(context, 1, size), keys[size:]])
        golden.assert_same(label, found, stored[f"{label}_key_layer1"])
    tokens = 2 + case.grid[0] * case.grid[1]
    for label, context in (("", full), ("_no_text", no_text), ("_no_image", no_image)):
        found = context.position.repeat_interleave(tokens)
        golden.assert_same(label, found, stored[f"query_position_ids{label}"])


def _sequence(context: Context, layer: int, size: int | None = None) -> Tensor:
    """Keys of the leading clean picture in the official order: SOI, latents, EOI."""
    keys = context.kept[layer][0][0][:size]
    return torch.cat([keys[:1], keys[2:], keys[1:2]])


@pytest.mark.parametrize("name", EDIT)
@torch.no_grad()
def test_editing_velocities_and_guidance(name):
    case = Editing(name)
    full, *others = case.contexts()
    x = case.stored["init_noise"].unsqueeze(0)
    branches = GuidedVelocity(case.network, full, others, case.ids)(x, case.time, True)
    for label, v in zip(("v_full", "v_no_text", "v_no_image"), branches, strict=True):
        golden.assert_same(label, v[0], case.stored[label])
    for label, renorm, scale in guided_labels(case.stored, "img"):
        options = case.options(renormalise=renorm, image_guidance=scale)
        golden.assert_same(label, guided(branches, options)[0], case.stored[label])


@pytest.mark.parametrize("name", EDIT)
@torch.no_grad()
def test_editing_trajectories(name):
    case = Editing(name)
    full, *others = case.contexts()
    drawn = GuidedVelocity(case.network, full, others, case.ids)
    labels = [k.removeprefix("trajectory_") for k in case.stored if k.startswith("trajectory_")]
    assert labels
    for label in labels:
        options = case.options(renormalise=label)
        found = times(options.steps, options.timestep_shift)[:-1]
        golden.assert_same("times", found, case.stored[f"timesteps_{label}"])
        x, trajectory = sample(drawn, case.stored["init_noise"].unsqueeze(0), options)
        golden.assert_same(label, torch.cat(trajectory), case.stored[f"trajectory_{label}"])
        golden.assert_same(label, x[0], case.stored[f"final_latent_{label}"])


# ---- words -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DECODE)
@torch.no_grad()
def test_greedy_answers(name):
    described, stored = golden.load("bagel", name)
    model, asked = bagel.model_of(described), described["decode"]
    pixels, patch = stored["image_vit"], model.config.vit.patch_size
    states = bagel.vit_states(model, [pixels]).unsqueeze(0)
    grid = torch.tensor([[pixels.shape[1] // patch, pixels.shape[2] // patch]])
    blocks = [vit_block(model.network, states, grid), text_block(model.network, [asked["q"]])]
    context = extend(model.network, empty(model.network, 1), blocks)
    golden.assert_same("keys", context.kept[1][0][0], stored["context_key_layer1"])
    golden.assert_same("start", context.position, stored["start_position"])
    logits, tokens = zip(*greedy(model.network, context, asked["n"]), strict=True)
    golden.assert_same("logits", torch.cat(logits), stored["logits"])
    generated = stored["generated_ids"].tolist()
    assert generated[0] == model.config.special.bos
    assert torch.cat(tokens)[: asked["n"] - 1].tolist() == generated[1:]


@torch.no_grad()
def test_rows_of_any_length_share_a_batch():
    """Padding is never seen: a stacked context answers as each of its rows does alone."""
    if not T2I:
        pytest.skip("no sampler case to build a model from")
    case = t2i_of(T2I[0], "two")
    network = case.network
    rows = [[7, 8, 9], [5], None]
    together = extend(network, empty(network, 3), [text_block(network, rows)])
    x = torch.randn(3, len(case.ids), case.model.config.latent_width)
    t = torch.tensor([0.2, 0.5, 0.9])
    both = velocity(network, together, x, t, case.ids)
    for row, text in enumerate(rows):
        alone = empty(network, 1)
        if text is not None:
            alone = extend(network, alone, [text_block(network, [text])])
        one = slice(row, row + 1)
        own = velocity(network, alone, x[one], t[one], case.ids)
        torch.testing.assert_close(both[one], own, rtol=1e-4, atol=1e-5)
        again = velocity(network, stacked([alone, rows_of(together, one)]), x[one].repeat(2, 1, 1),
                         t[one].repeat(2), case.ids)  # fmt: skip
        torch.testing.assert_close(again, own.repeat(2, 1, 1), rtol=1e-4, atol=1e-5)
