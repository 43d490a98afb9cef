"""Harmon's published training losses, transcribed from docs/reference/harmon.md: the baseline of `harmon_step`.

Layers of the language model, MAR's blocks and the head's are checkpointed (e); sequences carry their padding through
the language model (b), except in its attention, which is causal without padding as FlashAttention-2 is (e); all
tokens are embedded before the masked ones are dropped (c); position tables are resized in every call (g16); the head
runs on all rows, masked or not (g10), with tables gathered in float64 (d2). MAR's dropout is left out.
Letters: B batch, L latents of an image, S buffers, T tokens, R rows of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from reca_kernels import Layout, block_attention
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perf.harmon_direct import modulation
from reca.models.common.attention import Rotary, rotary, rotate
from reca.models.common.embeddings import timestep_code
from reca.models.harmon.diffusion import tables
from reca.models.harmon.network import Harmon

IMAGE, IMAGE_AT, IGNORE = -200, 3, -100
GRADIENT = 0.1  # factor on the gradient of h_v (e)
Ids = Sequence[Sequence[int]]


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function, checkpointed."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return result


# ---- masked autoencoder (c, d1) --------------------------------------------------------------------
def encode(network: Harmon, latents: Tensor, kept: Tensor | None = None) -> Tensor:
    """Encoder output [B, S + V, E] of latents [B, L, C]; `kept` [B, S + L] marks buffers and visible tokens."""
    mar = network.mar
    lead = mar.fake_latent.expand(len(latents), mar.config.buffers, -1)
    x = torch.cat([lead, mar.z_proj(latents)], dim=1)
    x = mar.z_proj_ln(x + mar.positions(mar.encoder_pos_embed_learned, network.config.grid))
    if kept is not None:
        x = x[kept].view(len(x), -1, x.shape[-1])
    for block in mar.encoder_blocks:
        x = recomputed(block, x)
    return mar.encoder_norm(x)


def decode(network: Harmon, encoded: Tensor, kept: Tensor) -> Tensor:
    """Conditions z [B, L, D] of the head."""
    mar, grid = network.mar, network.config.grid
    x = mar.mask_token.repeat(*kept.shape, 1)
    x[kept] = mar.decoder_embed(encoded).flatten(0, 1)
    x = x + mar.positions(mar.decoder_pos_embed_learned, grid)
    for block in mar.decoder_blocks:
        x = recomputed(block, x)
    x = mar.decoder_norm(x)[:, mar.config.buffers :]
    return x + mar.positions(mar.diffusion_pos_embed_learned, grid)


def understood(network: Harmon, latents: Tensor) -> Tensor:
    """h_v [B, L + S, H]: nothing masked, buffers to the end (c), a tenth of the gradient (e)."""
    buffers = network.mar.config.buffers
    read = network.proj_in(encode(network, latents))
    read = torch.cat([read[:, buffers:], read[:, :buffers]], dim=1)
    return GRADIENT * read + (1 - GRADIENT) * read.detach()


# ---- language model (a, b) -------------------------------------------------------------------------
def sequences(network: Harmon, texts: Ids, image: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, H] with the image in its place, right-padded, and the key mask [B, T]."""
    longest = max(len(text) for text in texts)
    ids = torch.tensor([[*text, *[network.config.end] * (longest - len(text))] for text in texts])
    real = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    words = network.llm.model.embed_tokens(ids.clamp(min=0))
    shown = real.new_ones(image.shape[:2])
    embeddings = torch.cat([words[:, :IMAGE_AT], image, words[:, IMAGE_AT + 1 :]], dim=1)
    return embeddings, torch.cat([real[:, :IMAGE_AT], shown, real[:, IMAGE_AT + 1 :]], dim=1)


def hidden(network: Harmon, x: Tensor, mask: Tensor) -> Tensor:
    """Final states [B, T, H]; padding takes no position (b)."""
    llm = network.llm.model
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cos, sin = rotary(positions, llm.head_dim, llm.theta)
    of_heads = cos.unsqueeze(2), sin.unsqueeze(2)
    layout = Layout.packed([[("causal", int(count))] for count in mask.sum(dim=1)])
    for layer in llm.layers:
        x = recomputed(language_layer, layer, x, of_heads, mask.bool(), layout)
    return llm.norm(x)


def language_layer(layer: Any, x: Tensor, places: Rotary, real: Tensor, layout: Layout) -> Tensor:
    """One decoder layer; attention takes padding out and puts zeros back, as FlashAttention-2 is called."""
    own, y = layer.self_attn, layer.input_layernorm(x)
    q, k, v = (
        project(y).unflatten(-1, (-1, own.head_dim))
        for project in (own.q_proj, own.k_proj, own.v_proj)
    )
    q, k = rotate(q, places), rotate(k, places)
    out = torch.zeros_like(q)
    out[real] = block_attention(q[real], k[real], v[real], layout, implementation="torch")
    x = x + own.o_proj(out.flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x))


# ---- diffusion head (d2) ---------------------------------------------------------------------------
def predicted(net: Any, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and variance values, [R, C] each, of x [R, C] at timesteps [R] under z [R, D]."""
    h = net.input_proj(x)
    y = net.time_embed.mlp(timestep_code(t)) + net.cond_embed(z)
    for block in net.res_blocks:
        h = recomputed(_residual, block, h, y)
    shift, scale = modulation(net.final_layer, y, 2)
    normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
    eps, raw = net.final_layer.linear(normed * (1 + scale) + shift).chunk(2, dim=-1)
    return eps, raw


def _residual(block: Any, h: Tensor, y: Tensor) -> Tensor:
    shift, scale, gate = modulation(block, y, 3)
    return h + gate * block.mlp(block.in_ln(h) * (1 + scale) + shift)


def row_losses(net: Any, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The error of the noise and the bound of the variance, [R], for rows x0 [R, C]."""

    def at(values: Tensor) -> Tensor:
        return values[t].float().unsqueeze(-1)

    table = tables()
    x = at(table.alphas_cumprod.sqrt()) * x0 + at((1 - table.alphas_cumprod).sqrt()) * noise
    eps, raw = predicted(net, x, t, z)
    mse = (noise - eps).square().mean(dim=-1)
    eps = eps.detach()
    share = (raw + 1) / 2
    least = at(table.posterior_log_variance_clipped)
    log_variance = share * at(table.betas.log()) + (1 - share) * least
    start = at(table.sqrt_recip_alphas_cumprod) * x - at(table.sqrt_recipm1_alphas_cumprod) * eps
    first, second = at(table.posterior_mean_coef1), at(table.posterior_mean_coef2)
    mean, true = first * start + second * x, first * x0 + second * x
    divergence = 0.5 * (
        -1
        + log_variance
        - least
        + torch.exp(least - log_variance)
        + (true - mean).square() * torch.exp(-log_variance)
    )
    likelihood = _discretised(x0, mean, 0.5 * log_variance)
    bits = torch.where(t.unsqueeze(-1) == 0, -likelihood, divergence).mean(dim=-1) / math.log(2)
    return mse + bits


def _discretised(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log likelihood of bins of half-width 1/255, the outer ones open (d2)."""

    def cdf(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    inverse = torch.exp(-log_scale)
    upper, lower = (cdf(inverse * (x - mean + half)) for half in (1 / 255, -1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    low, high = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, low, torch.where(x > 0.999, high, inside))


# ---- the two micro-batches (e) ---------------------------------------------------------------------
def reconstruction_loss(
    network: Harmon,
    latents: Tensor,
    texts: Ids,
    orders: Tensor,
    masked: int,
    rows: tuple[Tensor, Tensor],
) -> Tensor:
    """L_RecA of latents [B, L, C]: the first `masked` of each of `orders` [B, L] are predicted.

    `rows`: timesteps [R] and noise [R, C] of all tokens, repeated as whole blocks (d1).
    """
    mar = network.mar
    mask = torch.zeros(orders.shape, dtype=torch.bool).scatter(1, orders[:, :masked], True)
    buffers = mask.new_ones(len(mask), mar.config.buffers)
    kept = torch.cat([buffers, ~mask], dim=1)
    embeddings, real = sequences(network, texts, understood(network, latents))
    seen = encode(network, latents, kept)
    image, count = network.proj_in(seen), buffers.shape[1]
    image = torch.cat([image[:, count:], image[:, :count]], dim=1)
    x = torch.cat([embeddings, image], dim=1)
    states = hidden(network, x, torch.cat([real, real.new_ones(image.shape[:2])], dim=1))
    back = network.proj_out(states[:, -image.shape[1] :])
    seen = seen + torch.cat([back[:, -count:], back[:, :-count]], dim=1)
    z = decode(network, seen, kept)
    t, noise = rows
    repeats = len(t) // mask.numel()
    losses = row_losses(
        mar.diffloss.net,
        latents.flatten(0, 1).repeat(repeats, 1),
        z.flatten(0, 1).repeat(repeats, 1),
        t,
        noise,
    )
    weights = mask.flatten().repeat(repeats).float()
    return (losses * weights).sum() / weights.sum()


def answer_loss(network: Harmon, latents: Tensor, texts: Ids, labels: Ids) -> Tensor:
    """Mean cross-entropy of the supervised tokens (c): only their states pass the head."""
    image = understood(network, latents)
    embeddings, real = sequences(network, texts, image)
    states = hidden(network, embeddings, real)
    longest = max(len(row) for row in labels)
    padded = torch.tensor([[*row, *[IGNORE] * (longest - len(row))] for row in labels])
    blank = padded.new_full(image.shape[:2], IGNORE)
    padded = torch.cat([padded[:, :IMAGE_AT], blank, padded[:, IMAGE_AT + 1 :]], dim=1)
    targets = padded[:, 1:]
    chosen = targets != IGNORE
    return F.cross_entropy(network.llm.lm_head(states[:, :-1][chosen]), targets[chosen])
