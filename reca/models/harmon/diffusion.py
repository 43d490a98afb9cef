"""The per-token diffusion head: its schedule, its network, its training loss, its respaced reverse process.

Rows are tokens: x and noise [R, C], condition [R, D], timesteps [R]. Losses are computed in fp32 whatever the
network runs in. Source: docs/reference/harmon.md d2 and d3. Letters: R rows, C latent channels, W head
width, S sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.common.embeddings import timestep_code
from reca.models.harmon.config import TRAIN_STEPS

SLICE = 2**16
"""Rows of a training pass: a block that is computed again holds all that it makes of so many."""

_CODE = 256  # width of the timestep code
_HALF_BIN = 1 / 255  # half-width of a pixel's bin in [-1, 1]
_EDGE = 0.999
_TINY = 1e-12


# ---- tables --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tables:
    """Schedule of a (respaced) process, float64 [S] each; `timesteps` are the original indices [S] int64.

    `log_betas` and `posterior_log_variance_clipped` are the two ends of the learned log variance.
    """

    betas: Any
    log_betas: Any
    alphas_cumprod: Any
    alphas_cumprod_prev: Any
    posterior_variance: Any
    posterior_log_variance_clipped: Any
    posterior_mean_coef1: Any
    posterior_mean_coef2: Any
    sqrt_recip_alphas_cumprod: Any
    sqrt_recipm1_alphas_cumprod: Any
    timesteps: Any

    def rows(self, t: Tensor) -> Tables:
        """The entries at steps [R], on the tables' device, as [R, 1]; floats in fp32."""
        picked = {name: value[t].unsqueeze(-1) for name, value in vars(self).items()}
        return Tables(
            **{name: v.float() if v.is_floating_point() else v for name, v in picked.items()}
        )

    def at(self, step: int) -> Tables:
        """The entries of one step as Python numbers: they travel with the kernels, no copy to a device is needed."""
        return Tables(**{name: value[step].item() for name, value in vars(self).items()})


def cosine_betas() -> Tensor:
    """The 1000 training betas: 1 - a((i+1)/T) / a(i/T) with a(u) = cos^2, at most 0.999; float64 [T]."""

    def kept(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(TRAIN_STEPS)
    ratios = [kept((i + 1) / TRAIN_STEPS) / kept(i / TRAIN_STEPS) for i in steps]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)


def linear_betas() -> Tensor:
    """1000 betas evenly from 0.0001 to 0.02 (Ho et al. 2020), float64 [T]; not Harmon's (`MarConfig.noise_schedule`)."""
    return torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64)


BETAS = {"cosine": cosine_betas, "linear": linear_betas}


def respaced(count: int) -> list[int]:
    """The original indices that a process of `count` steps keeps: j * 999/(count-1), added up and rounded to even."""
    if not 2 <= count <= TRAIN_STEPS:
        raise ValueError(f"sampling_steps is {count}; it must be in 2..{TRAIN_STEPS}")
    stride, at, kept = (TRAIN_STEPS - 1) / (count - 1), 0.0, []
    for _ in range(count):
        kept.append(round(at))
        at += stride
    return kept


@lru_cache
def tables(count: int = TRAIN_STEPS, schedule: str = "cosine") -> Tables:
    """Tables of the process that keeps `count` of the training steps (all of them: the training process)."""
    every = BETAS[schedule]()
    kept = torch.tensor(respaced(count))
    cumprod = (1 - every).cumprod(0)[kept]
    before = torch.cat([cumprod.new_ones(1), cumprod[:-1]])
    betas = every if count == TRAIN_STEPS else 1 - cumprod / before
    cumprod = (1 - betas).cumprod(0)
    before = torch.cat([cumprod.new_ones(1), cumprod[:-1]])
    variance = betas * (1 - before) / (1 - cumprod)
    return Tables(
        betas=betas,
        log_betas=betas.log(),
        alphas_cumprod=cumprod,
        alphas_cumprod_prev=before,
        posterior_variance=variance,
        posterior_log_variance_clipped=torch.cat([variance[1:2], variance[1:]]).log(),
        posterior_mean_coef1=betas * before.sqrt() / (1 - cumprod),
        posterior_mean_coef2=(1 - before) * (1 - betas).sqrt() / (1 - cumprod),
        sqrt_recip_alphas_cumprod=(1 / cumprod).sqrt(),
        sqrt_recipm1_alphas_cumprod=(1 / cumprod - 1).sqrt(),
        timesteps=kept,
    )


@lru_cache
def training_tables(schedule: str, device: torch.device) -> Tables:
    """Tables of the training process on a device, where they stay: every micro-batch reads them."""
    every = tables(schedule=schedule)
    return Tables(**{name: value.to(device) for name, value in vars(every).items()})


# ---- network -------------------------------------------------------------------------------------
class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_CODE, width), nn.SiLU(), nn.Linear(width, width))


class _Modulated(nn.Module):
    """What a residual block and the final layer share: `parts` vectors of y that shift, scale and gate."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))

    @property
    def modulator(self) -> nn.Linear:
        """The layer from SiLU(y) [..., W] to the vectors [..., parts * W]."""
        layer = self.adaLN_modulation[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def modulation(self, active: Tensor) -> tuple[Tensor, ...]:
        """Shift, 1 + scale and, in a residual block, gate of SiLU(y) [..., W].

        Made inside the block's pass: recomputed with it, or they would be most of what the head keeps.
        """
        shift, scale, *gate = self.modulator(active).chunk(self.parts, dim=-1)
        return shift, 1 + scale, *gate


class _ResBlock(_Modulated):
    def __init__(self, width: int) -> None:
        super().__init__(width, 3)
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, active: Tensor) -> Tensor:
        """Tokens [M, W] under the modulation of `active` [M, W]."""
        shift, scale, gate = self.modulation(active)
        return torch.addcmul(h, gate, self.mlp(torch.addcmul(shift, self.in_ln(h), scale)))


class _FinalLayer(_Modulated):
    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, 2)
        self.linear = nn.Linear(width, out)

    def forward(self, h: Tensor, active: Tensor) -> Tensor:
        """Tokens [M, W] -> [M, 2C] under the modulation of `active` [M, W]."""
        shift, scale = self.modulation(active)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        return self.linear(torch.addcmul(shift, normed.to(scale.dtype), scale))


class HeadNet(nn.Module):
    """The head's MLP under its official names: x_t [R, C], y -> [R, 2C], predicted noise then raw variance."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = _TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(_ResBlock(width) for _ in range(depth))
        self.final_layer = _FinalLayer(width, 2 * channels)

    def time(self, t: Tensor) -> Tensor:
        """Embedding of timesteps [R] -> [R, W]."""
        return self.time_embed.mlp(timestep_code(t, _CODE).to(self.cond_embed.weight.dtype))

    @property
    def modulated(self) -> list[_Modulated]:
        """Everything that y modulates, in order."""
        return [*self.res_blocks, self.final_layer]

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Prediction [R, 2C] for x_t [R, C] at timesteps [R] under conditions z [R, D]."""
        active = F.silu(self.time(t) + self.cond_embed(z))
        h = self.input_proj(x)
        for part in self.modulated:
            h = part(h, active)
        return h


class DiffusionHead(nn.Module):
    """`mar.diffloss`: the network and what it is trained and sampled by."""

    def __init__(
        self,
        channels: int,
        condition: int,
        width: int,
        depth: int,
        sampling_steps: int,
        schedule: str = "cosine",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.sampling_steps, self.schedule = sampling_steps, schedule
        self.net = HeadNet(channels, condition, width, depth)

    # ---- training --------------------------------------------------------------------------------
    def losses(
        self, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor, slices: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Per-row noise mean square error [R] and variational bound [R] in bits per dimension, fp32.

        The rows pass the network in `slices`: of equal number on all ranks, which gather each block for each.
        """
        x_t = noised(x0.float(), t, noise.float(), self.schedule)
        parts = (rows.tensor_split(slices) for rows in (x_t.to(z.dtype), t, z))
        predicted = torch.cat([self.net(*part) for part in zip(*parts, strict=True)])
        with torch.autocast(z.device.type, enabled=False):
            eps, raw = predicted.float().chunk(2, dim=-1)
            mse = (noise.float() - eps).square().mean(-1)
            return mse, bound(x0.float(), t, noise.float(), eps.detach(), raw, self.schedule)


# ---- sampling -------------------------------------------------------------------------------------
def reverse(
    step: Tables,
    x: Tensor,
    predicted: Tensor,
    noise: Tensor | None,
    guidance: float,
    temperature: float,
) -> Tensor:
    """One ancestral step (harmon.md d3) of x [R, C], `predicted` [R, 2C] or [2R, 2C]; `noise` None: the mean itself."""
    eps, raw = predicted.chunk(2, dim=-1)
    if len(eps) != len(
        x
    ):  # both halves: the noise is guided, the variance is the conditional half's
        conditional, unconditional = eps.chunk(2)
        eps = torch.lerp(unconditional, conditional, guidance)
        raw = raw[: len(x)]
    # `posterior` with its numbers multiplied out: few small operations are what this loop is made of
    kept = step.posterior_mean_coef1 * step.sqrt_recip_alphas_cumprod + step.posterior_mean_coef2
    taken = step.posterior_mean_coef1 * step.sqrt_recipm1_alphas_cumprod
    mean = torch.sub(x * kept, eps, alpha=taken)
    if noise is None:
        return mean
    middle = (step.log_betas + step.posterior_log_variance_clipped) / 4
    slope = (step.log_betas - step.posterior_log_variance_clipped) / 4
    deviation = torch.exp(raw * slope + middle)
    return torch.addcmul(mean, deviation, noise, value=temperature)


def posterior(step: Tables, x: Tensor, eps: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log variance and predicted x_0 of p(x_{t-1} | x_t), each [R, C]; `step` from `Tables.at` or `.rows`."""
    start = step.sqrt_recip_alphas_cumprod * x - step.sqrt_recipm1_alphas_cumprod * eps
    mean = step.posterior_mean_coef1 * start + step.posterior_mean_coef2 * x
    share = (raw + 1) / 2
    log_variance = share * step.log_betas + (1 - share) * step.posterior_log_variance_clipped
    return mean, log_variance, start


# ---- loss terms ----------------------------------------------------------------------------------
def noised(x0: Tensor, t: Tensor, noise: Tensor, schedule: str = "cosine") -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, rows [R, C] at timesteps [R]."""
    kept = training_tables(schedule, t.device).alphas_cumprod[t].unsqueeze(-1)
    return kept.sqrt().to(x0.dtype) * x0 + (1 - kept).sqrt().to(x0.dtype) * noise


def bound(
    x0: Tensor, t: Tensor, noise: Tensor, eps: Tensor, raw: Tensor, schedule: str = "cosine"
) -> Tensor:
    """Variational bound [R] in bits per dimension: a KL for t > 0, a discretised likelihood for t = 0."""
    step, x_t = training_tables(schedule, t.device).rows(t), noised(x0, t, noise, schedule)
    mean, log_variance, _ = posterior(step, x_t, eps, raw)
    true = step.posterior_mean_coef1 * x0 + step.posterior_mean_coef2 * x_t
    true_log = step.posterior_log_variance_clipped
    spread = torch.exp(true_log - log_variance)
    distance = (true - mean).square() * torch.exp(-log_variance)
    divergence = 0.5 * (-1 + log_variance - true_log + spread + distance)
    likelihood = _discretised(x0, mean, 0.5 * log_variance)
    bits = torch.where(t.unsqueeze(-1) == 0, -likelihood, divergence).mean(-1)
    return bits / math.log(2)


def _discretised(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the bin around x under a Gaussian, edges open to infinity; all [M, C]."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + _HALF_BIN))
    lower = _normal_cdf(inverse * (centred - _HALF_BIN))
    inside = (upper - lower).clamp(min=_TINY).log()
    low, high = upper.clamp(min=_TINY).log(), (1 - lower).clamp(min=_TINY).log()
    return torch.where(x < -_EDGE, low, torch.where(x > _EDGE, high, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function, elementwise [M, C]."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
