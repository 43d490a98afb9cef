"""The reference's one pass over a pack of samples: what is embedded in its places, and the states that come out.

Source: docs/reference/bagel.md 2 and 3. Letters: S tokens of a pack, D width, C values of a latent token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from reca_kernels import Implementation
from torch import Tensor

from reca.models.bagel.attention import PackedAttention
from reca.models.bagel.layout import Packed
from reca.models.bagel.network import Bagel, Pair, no_grad_if


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
    """Indices [M] of the latent tokens that carry the velocity loss, among all latent tokens."""
    return torch.searchsorted(packed.latent_at, packed.mse_at)
