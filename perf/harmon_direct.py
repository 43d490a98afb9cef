"""Harmon's published sampling loop, transcribed module by module: the baseline of `harmon_sampler`.

It follows docs/reference/harmon.md c, d2, d3 and d4: conditional and unconditional rows pass together
through encoder, language model, decoder and head; all tokens are embedded before the masked ones are dropped;
position tables are resized in every call; every reverse step runs the entire head, and gathers its tables from float64
arrays (the eight of g18). Images of one prompt share a batch, other prompts run separately (g19). It shares weights
and plain layers with the package, but none of its optimisations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.common.attention import KeyValueCache
from reca.models.common.embeddings import timestep_code
from reca.models.harmon import layout as layouts
from reca.models.harmon.diffusion import tables
from reca.models.harmon.network import Harmon


@dataclass(frozen=True)
class Given:
    """Inputs of a step, rows of both halves [2b, ...]: tokens [2b, L, C], and masks of masked and sampled ones [2b, L].

    `noise`: initial [R, C] and of the reverse steps [S, R, C], for the R rows of the conditional half.
    """

    tokens: Tensor
    masked: Tensor
    chosen: Tensor
    noise: tuple[Tensor, Tensor]


class Direct:
    """The loop for one batch: `ids` and `mask` [2b, P] are b conditional and b unconditional prompts."""

    def __init__(
        self,
        network: Harmon,
        grid: tuple[int, int],
        prompts: tuple[Tensor, Tensor],
        guidance: float,
        temperature: float = 1.0,
    ) -> None:
        ids, self.mask = prompts
        self.network, self.grid = network, grid
        self.guidance, self.temperature = guidance, temperature
        self.cache = KeyValueCache()
        network.hidden(network.embed(ids), cache=self.cache)
        head = network.mar.diffloss
        self.steps = head.sampling_steps
        schedule = vars(tables(self.steps, head.schedule))
        self.tables = {name: value.numpy() for name, value in schedule.items()}

    def step(self, given: Given) -> Tensor:
        """Latents [R, C] of the selected positions, conditional half, rows in (image, raster) order."""
        network = self.network
        kept = self._kept(given.masked)
        seen = self._encode(given.tokens, kept)
        image = network.to_llm(seen)
        mask = torch.cat([self.mask, self.mask.new_ones(image.shape[:2])], dim=1)
        places = layouts.positions(mask)[:, -image.shape[1] :]
        hidden = network.hidden(image, mask=mask, positions=places, cache=self.cache)
        self.cache.drop(image.shape[1])
        z = self._decode(network.with_context(seen, hidden), kept)
        return self._reverse(z[given.chosen], given.noise)

    # ---- masked autoencoder (harmon.md c, d1) ---------------------------------------------------------
    def _kept(self, masked: Tensor) -> Tensor:
        """Mask of visible buffers and positions [2b, S + L]."""
        buffers = masked.new_ones(len(masked), self.network.mar.config.buffers)
        return torch.cat([buffers, ~masked], dim=1)

    def _encode(self, tokens: Tensor, kept: Tensor) -> Tensor:
        mar = self.network.mar
        lead = mar.fake_latent.expand(len(tokens), mar.config.buffers, -1)
        x = torch.cat([lead, mar.z_proj(tokens)], dim=1)
        x = mar.z_proj_ln(x + mar.positions(mar.encoder_pos_embed_learned, self.grid))
        x = x[kept].view(len(x), -1, x.shape[-1])
        for block in mar.encoder_blocks:
            x = block(x)
        return mar.encoder_norm(x)

    def _decode(self, encoded: Tensor, kept: Tensor) -> Tensor:
        mar = self.network.mar
        x = mar.mask_token.repeat(*kept.shape, 1)
        x[kept] = mar.decoder_embed(encoded).flatten(0, 1)
        x = x + mar.positions(mar.decoder_pos_embed_learned, self.grid)
        for block in mar.decoder_blocks:
            x = block(x)
        x = mar.decoder_norm(x)[:, mar.config.buffers :]
        return x + mar.positions(mar.diffusion_pos_embed_learned, self.grid)

    # ---- head (harmon.md d2, d3) ----------------------------------------------------------------------
    def _reverse(self, z: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        """The respaced reverse process, both halves at every step."""
        half = len(z) // 2
        x = torch.cat([noise[0], noise[0]])
        for index in reversed(range(self.steps)):
            t = torch.full((len(x),), index)
            mean, log_variance = self._posterior(x, t, z)
            drawn = torch.cat([noise[1][-1 - index]] * 2) * self.temperature
            shown = (t != 0).float().unsqueeze(-1)
            x = mean + shown * torch.exp(0.5 * log_variance) * drawn
            x = torch.cat([x[:half], x[:half]])
        return x[:half]

    def _posterior(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        half, gather = len(x) // 2, self._gather
        net = self.network.mar.diffloss.net
        eps, raw = predicted(net, x, gather("timesteps", t)[:, 0].long(), z).chunk(2, dim=-1)
        guided = eps[half:] + self.guidance * (eps[:half] - eps[half:])
        eps = torch.cat([guided, guided])
        low, high = gather("posterior_log_variance_clipped", t), torch.log(gather("betas", t))
        share = (raw + 1) / 2
        log_variance = share * high + (1 - share) * low
        start = gather("sqrt_recip_alphas_cumprod", t) * x
        start = start - gather("sqrt_recipm1_alphas_cumprod", t) * eps
        mean = gather("posterior_mean_coef1", t) * start + gather("posterior_mean_coef2", t) * x
        # the true posterior's variance is gathered with its mean, and not used
        gather("posterior_variance", t), gather("posterior_log_variance_clipped", t)
        return mean, log_variance

    def _gather(self, name: str, t: Tensor) -> Tensor:
        found: Tensor = torch.from_numpy(np.asarray(self.tables[name])).to(t.device)[t].float()
        return found.unsqueeze(-1)


def predicted(net: Any, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """The head's MLP as in harmon.md d2.

    Returns [R, 2C] for x [R, C], original timesteps t [R] and conditions z [R, D].
    """
    h = net.input_proj(x)
    y = net.time_embed.mlp(timestep_code(t)) + net.cond_embed(z)
    for block in net.res_blocks:
        shift, scale, gate = modulation(block, y, 3)
        h = h + gate * block.mlp(block.in_ln(h) * (1 + scale) + shift)
    shift, scale = modulation(net.final_layer, y, 2)
    normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
    out: Tensor = net.final_layer.linear(normed * (1 + scale) + shift)
    return out


def modulation(modulated: Any, y: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Shift, scale and, of three parts, gate [R, W] of y [R, W]."""
    found: Tensor = modulated.adaLN_modulation(y)
    return found.chunk(parts, dim=-1)
