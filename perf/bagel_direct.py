"""BAGEL's published RecA step, transcribed from docs/reference/bagel.md: the baseline of `bagel_step`.

Samples are one pack; every operation of a layer runs by expert into a zero-filled tensor (3, 7.7); what comes from
understanding tokens is detached (5); every layer, ViT layer and the connector is checkpointed (5); VAE and ViT run in
every step (7.9). The order of the pack is the package's (`layout`, equal to the golden packs), and so is attention
by blocks of the mask: it computes what the published flex kernel does. Padding for that kernel is left out (7.8).
Letters: S tokens of a pack, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from reca_kernels import Layout, block_attention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reca.models.bagel.layout import Packed
from reca.models.bagel.network import GEN, Bagel
from reca.models.bagel.vision import patchify
from reca.models.common.attention import Rotary, rotate


class Pack:
    """Places of und and gen tokens in a pack, its rope tables and mask."""

    def __init__(self, network: Bagel, packed: Packed) -> None:
        self.packed = packed
        self.und = torch.cat([packed.text_at, packed.vit_at]).sort().values
        self.gen = packed.latent_at
        # one row of the tables per token, for all heads (3)
        cos, sin = network.decoder.rotary(packed.positions)
        self.rotary: Rotary = cos.unsqueeze(1), sin.unsqueeze(1)
        self.layout: Layout = packed.layout()

    def by_expert(self, module: Any, name: str, x: Tensor, width: int, frozen: bool) -> Tensor:
        """Both experts' layers of a name on their tokens of x [S, ...]; `frozen` detaches und tokens (5)."""
        und, gen = (
            module.get_submodule(name + suffix)(x[at])
            for suffix, at in (("", self.und), (GEN, self.gen))
        )
        out = x.new_zeros(*x.shape[:-1], width)
        out[self.und] = und.detach() if frozen else und
        out[self.gen] = gen
        return out


def layer(module: Any, x: Tensor, pack: Pack) -> Tensor:
    """States [S, D] after a layer (3), with the detached places of section 5."""
    own, width = module.self_attn, x.shape[-1]
    head = own.head_dim
    shared = own.k_proj.out_features
    y = pack.by_expert(module, "input_layernorm", x, width, frozen=False)
    q, k = (
        pack.by_expert(own, name, y, size, frozen=False).unflatten(-1, (-1, head))
        for name, size in (("q_proj", width), ("k_proj", shared))
    )
    v = pack.by_expert(own, "v_proj", y, shared, frozen=True).unflatten(-1, (-1, head))
    q, k = (
        rotate(pack.by_expert(own, name, part, head, frozen=True), pack.rotary)
        for name, part in (("q_norm", q), ("k_norm", k))
    )
    out = block_attention(q, k, v, pack.layout, implementation="torch").flatten(1)
    x = x + pack.by_expert(own, "o_proj", out, width, frozen=True)
    y = pack.by_expert(module, "post_attention_layernorm", x, width, frozen=False)
    return x + pack.by_expert(module, "mlp", y, width, frozen=True)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function, checkpointed as published: not reentrant (5)."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return result


def vit_states(network: Bagel, patches: Tensor, ids: Tensor) -> Tensor:
    """ViT states [B, P, Dvit] of images' patches [B, P, C] at position ids [B, P]; images see only themselves (2)."""
    vision = network.vit_model.vision_model
    x = vision.embeddings.patch_embedding(patches) + vision.embeddings.position_embedding(ids)
    for one in vision.encoder.layers:
        x = recomputed(one, x, None)
    return vision.post_layernorm(x)


def loss(
    network: Bagel, packed: Packed, seen: Tensor, clean: Tensor, noise: Tensor, raw: Tensor
) -> Tensor:
    """The velocity loss (3) of a pack: ViT states [Sv, Dvit], clean latent tokens and noise [Sl, C], raw times [Sl]."""
    pack, width = Pack(network, packed), network.config.llm.hidden_size
    # und part of the input, detached (5)
    x = clean.new_zeros(len(packed.positions), width)
    read = recomputed(network.connector, seen) + network.vit_pos_embed(packed.vit_ids)
    x[packed.text_at] = network.embed(packed.text_ids).detach()
    x[packed.vit_at] = read.detach()
    # a time per token (3), shift 1 (5)
    t = torch.sigmoid(raw)
    noisy = (1 - t[:, None]) * clean + t[:, None] * noise
    places = network.latent_pos_embed(packed.latent_ids)
    x[packed.latent_at] = network.vae2llm(noisy) + network.time_embedder(t) + places
    for module in network.decoder.layers:
        x = recomputed(layer, module, x, pack)
    x = pack.by_expert(network.decoder, "norm", x, width, frozen=True)
    velocity = network.llm2vae(x[packed.mse_at])
    return (velocity - (noise - clean)).square().mean(-1).mean()


def clean_tokens(vae: Any, pixels: Tensor, noise: Tensor, patch: int) -> Tensor:
    """Latent tokens [Sl, C] of pixels [B, 3, H, W]: a posterior sample (2), which is encoded in every step (7.9)."""
    return patchify(vae.latents(vae.moments(pixels), noise), patch).flatten(0, 1)
