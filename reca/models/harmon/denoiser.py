"""The diffusion head for sampling: everything independent of x is computed for many reverse steps in one product.

Source: docs/reference/harmon.md d2, d3 and g18. Letters: R rows, C latent channels, W head width, S sampling
steps, N residual blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.common import packing
from reca.models.common.batching import moved
from reca.models.harmon.diffusion import DiffusionHead, reverse, tables

_HELD = {
    "cpu": 2**22
}  # number of modulation values held at once: on a CPU they should fit in the cache
_HELD_ELSEWHERE = 2**25


class _Modulation(NamedTuple):
    """Modulation of all blocks in one step: 1 + scales [R, N + 1, W], shifts and gates [R, N, W], and `out` [R, 2C].

    `out` is the final layer's shift after its linear layer: W_out (W_shift a + b_shift) + b_out, one small product.
    """

    scales: Tensor
    shifts: Tensor
    gates: Tensor
    out: Tensor


class Denoiser:
    """The reverse process of a head; uses the weights as they are at construction."""

    def __init__(self, head: DiffusionHead) -> None:
        net: Any = head.net
        self.net, self.steps = net, head.sampling_steps
        self.schedule = tables(head.sampling_steps, head.schedule)
        self.width, self.depth = net.input_proj.out_features, len(net.res_blocks)
        weight, bias = self._stacked()
        self.modulator = packing.linear(weight, bias)
        self.outputs = len(weight) - self.width * (3 * self.depth + 1)
        self.times = net.time(moved(self.schedule.timesteps, weight.device))  # [S, W]
        self.blocks = [
            (
                block.in_ln,
                *(packing.linear(block.mlp[at].weight, block.mlp[at].bias) for at in (0, 2)),
            )
            for block in net.res_blocks
        ]
        self.out = packing.linear(net.final_layer.linear.weight, None)

    def _stacked(self) -> tuple[Tensor, Tensor]:
        """One linear layer for all modulations: scales of all blocks and the final layer, shifts, gates, `out`.

        Returns its weight [rows, W] and bias [rows].
        """
        parts = [self._parts(block) for block in self.net.res_blocks]
        final = self.net.final_layer
        (shift, shift_bias), scale = self._parts(final)
        final_weight = final.linear.weight.detach().double()
        out_bias = final_weight @ shift_bias.double() + final.linear.bias.detach().double()
        out = (final_weight @ shift.double()).to(shift), out_bias.to(shift)
        order = [*(one[1] for one in parts), scale, *(one[0] for one in parts)]
        order += [*(one[2] for one in parts), out]
        return torch.cat([w for w, _ in order]), torch.cat([b for _, b in order])

    def _parts(self, modulated: Any) -> list[tuple[Tensor, Tensor]]:
        """Weights [W, W] and biases [W] of shift, scale and, in a residual block, gate."""
        layer = modulated.modulator
        weights = layer.weight.detach().split(self.width)
        return list(zip(weights, layer.bias.detach().split(self.width), strict=True))

    # ---- sampling --------------------------------------------------------------------------------
    def sample(
        self,
        z: Tensor,
        noise: Tensor,
        step_noise: Tensor,
        guidance: float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Run the respaced reverse process: latents [R, C] from initial noise [R, C] and step noise [S, R, C].

        `z` [R, D], or [2R, D] with guidance: conditional rows, then unconditional ones. `step_noise[i]` belongs to
        the i-th reverse step in order of execution; the last one is not used.
        """
        x = noise.float()
        for number, modulation in enumerate(self._modulations(z)):
            index = self.steps - 1 - number
            predicted = self._predicted(x.to(z.dtype), modulation)
            last = step_noise[number] if index else None
            x = reverse(self.schedule.at(index), x, predicted.float(), last, guidance, temperature)
        return x

    def _modulations(self, z: Tensor) -> Iterator[_Modulation]:
        """Modulations of every reverse step in order of execution, computed for as many steps at once as fit."""
        condition = self.net.cond_embed(z)
        backwards, scales = self.times.flip(0), (self.depth + 1) * self.width
        budget = _HELD.get(z.device.type, _HELD_ELSEWHERE)
        steps = max(1, budget // (self.modulator.weight.shape[0] * len(z)))
        sizes = [scales, self.depth * self.width, self.depth * self.width, self.outputs]
        for times in backwards.split(steps):
            modulations = self.modulator(
                F.silu(times.unsqueeze(1) + condition)
            )  # [steps, rows, ...]
            modulations[..., :scales] += 1
            for one in modulations:
                *parts, out = one.split(sizes, dim=-1)
                scale, shift, gate = (part.unflatten(-1, (-1, self.width)) for part in parts)
                yield _Modulation(scale, shift, gate, out)

    def _predicted(self, x: Tensor, modulation: _Modulation) -> Tensor:
        """Predicted noise and raw variance [R, 2C] for x [R, C], or for x [R/2, C] shared by both halves."""
        h = self.net.input_proj(x)
        repeats = len(modulation.out) // len(h)
        h = h.repeat(repeats, 1) if repeats > 1 else h
        scales, shifts, gates, out = modulation
        for at, (norm, first, second) in enumerate(self.blocks):
            inner = torch.addcmul(shifts[:, at], norm(h), scales[:, at])
            h = torch.addcmul(h, gates[:, at], second(packing.silu(first, inner)))
        normed = F.layer_norm(h, (self.width,), eps=1e-6).to(scales.dtype)
        return self.out(normed * scales[:, -1]) + out
