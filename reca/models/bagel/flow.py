"""The velocity loss, in the packed pass of the reference and in the two phases that are as exact and cheaper.

Source: docs/reference/bagel.md 3, 7.7 and 7.8. Letters: B pictures, N latent tokens, C
values of one, S tokens of a pack, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reca_kernels import Implementation, flow_matching_loss
from torch import Tensor

from reca.models.bagel.attention import PackedAttention
from reca.models.bagel.context import Block, drawn_states, empty, extend
from reca.models.bagel.layout import Packed
from reca.models.bagel.network import Bagel, Pair, no_grad_if
from reca.models.bagel.sampler import shifted


@dataclass(frozen=True)
class Noised:
    """A point x [B, N, C] at time t [B] on the way from clean latent tokens to noise, [B, N, C] each."""

    x: Tensor
    t: Tensor
    clean: Tensor
    noise: Tensor


def flow_time(raw: Tensor, shift: float) -> Tensor:
    """Flow time in [0, 1] of standard normal draws, float32; -inf (a clean picture) gives 0."""
    return shifted(torch.sigmoid(raw.float()), shift)


def noised(clean: Tensor, noise: Tensor, raw: Tensor, shift: float) -> Noised:
    """x_t = (1 - t) z + t eps, drawn and mixed in float32, from clean latent tokens z and eps [B, N, C], raw [B]."""
    t = flow_time(raw, shift)
    clean, noise = clean.float(), noise.float()
    mix = t[:, None, None]
    return Noised((1 - mix) * clean + mix * noise, t, clean, noise)


def velocity_loss(
    network: Bagel, states: Tensor, point: Noised, implementation: Implementation = "auto"
) -> Tensor:
    """Sum over tokens of the mean over channels of (llm2vae(states) - (noise - clean))^2, float32 scalar.

    `states` [..., D] of the latent tokens, in the order of the point's.
    """
    head = network.llm2vae
    clean, noise = (part.reshape(*states.shape[:-1], -1) for part in (point.clean, point.noise))
    return flow_matching_loss(
        states,
        head.weight,
        head.bias,
        clean,
        noise,
        reduction="sum",
        implementation=implementation,
    )


def two_phase_loss(
    network: Bagel,
    blocks: Sequence[Block],
    point: Noised,
    latent_ids: Tensor,
    implementation: Implementation = "auto",
) -> Tensor:
    """The summed velocity loss with a frozen und expert: the prefix once without gradient, then the noise block."""
    with torch.no_grad():
        context = empty(network, len(point.x))
        if blocks:
            context, _ = extend(network, context, blocks, frozen=True)
    states = drawn_states(network, context, point.x, point.t, latent_ids, frozen=True)
    return velocity_loss(network, states, point, implementation)


@dataclass(frozen=True)
class PackInputs:
    """What stands in a pack's places, in its order: ViT states [Sv, Dvit], latent tokens [Sl, C], their times [Sl]."""

    vit: Tensor
    latents: Tensor
    times: Tensor


@dataclass(frozen=True)
class PackStates:
    """Final states of a pack by kind of token: text [St, D], ViT [Sv, D], latent [Sl, D]."""

    text: Tensor
    vit: Tensor
    latent: Tensor


def on_device(packed: Packed, device: torch.device) -> Packed:
    """The pack with its index tensors on `device`."""
    moved: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(packed).items()
    }
    return Packed(**moved)


def pack_embeddings(network: Bagel, packed: Packed, inputs: PackInputs, frozen: bool) -> Pair:
    """Decoder inputs of a pack: und tokens (text, then ViT) [U, D] and gen tokens [G, D]."""
    with no_grad_if(frozen):
        und = network.embed(packed.text_ids)
        if len(packed.vit_at):
            und = torch.cat([und, network.read(inputs.vit, packed.vit_ids)])
    if not len(packed.latent_at):
        return Pair(und, und[:0])
    return Pair(und, network.latents_in(inputs.latents, inputs.times, packed.latent_ids))


def run_pack(
    network: Bagel,
    packed: Packed,
    inputs: PackInputs,
    *,
    frozen: bool,
    collect: list[Pair] | None = None,
    implementation: Implementation = "auto",
) -> PackStates:
    """Final states of all tokens of a pack, in one pass with the mask of bagel.md 2."""
    device = network.decoder.embed_tokens.weight.device
    tokens = pack_embeddings(network, packed, inputs, frozen)
    und_at = torch.cat([packed.text_at, packed.vit_at])
    positions = tuple(packed.positions[at] for at in (und_at, packed.latent_at))
    attention = PackedAttention(packed, device, implementation)
    attends = [attention] * len(network.decoder.layers)
    states = network.decoder(
        tokens, (positions[0], positions[1]), attends, frozen=frozen, collect=collect
    )
    text, vit = states.und.split([len(packed.text_at), len(packed.vit_at)])
    return PackStates(text, vit, states.gen)


def target_places(packed: Packed) -> Tensor:
    """Which of the latent tokens carry the velocity loss, as indices into them."""
    return torch.searchsorted(packed.latent_at, packed.mse_at)
