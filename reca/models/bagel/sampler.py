"""Rectified flow from noise to latents, with guidance from three contexts, and greedy text.

Source: docs/reference/bagel.md 4. Letters: B pictures, N latent tokens, C values of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from reca.models.contract import Sampling

_TINY = 1e-8
Renormalise = Literal["global", "channel", "text_channel"]
Branches = tuple[Tensor, Tensor | None, Tensor | None]
"""Velocities with everything, without the text, and without the pictures."""


@dataclass(frozen=True)
class FlowOptions:
    """How a picture is drawn; defaults are the authors' GenEval settings.

    `steps`: times, one more than evaluations. `guidance`: scale of the text (1 or less: none at all).
    `image_guidance`: scale of the source pictures (1: none). `interval`: guided where low < t <= high.
    `renormalise`, `renorm_min`: how a guided velocity is scaled back (1 switches it off). `norm_over`: `image`, or the
    whole `pack` as the official code does.
    """

    steps: int = 50
    guidance: float = 4.0
    image_guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renormalise: Renormalise = "global"
    renorm_min: float = 0.0
    timestep_shift: float = 3.0
    norm_over: Literal["image", "pack"] = "image"

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"sampling.steps is {self.steps}; BAGEL needs at least 2 times")
        for name in ("guidance", "image_guidance", "renorm_min"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"sampling.{name} is {getattr(self, name)}; it must not be negative"
                )
        if self.timestep_shift <= 0:
            raise ValueError(
                f"sampling.timestep_shift is {self.timestep_shift}; it must be positive"
            )
        _choose("renormalise", self.renormalise, ("global", "channel", "text_channel"))
        _choose("norm_over", self.norm_over, ("image", "pack"))

    @classmethod
    def of(cls, sampling: Sampling) -> FlowOptions:
        """The contract's `Sampling` with this family's `extra`; ValueError on an unknown key."""
        extra: Mapping[str, Any] = dict(sampling.options or {})
        known = {f.name for f in fields(cls)} - {"steps", "guidance"}
        if unknown := sorted(set(extra) - known):
            raise ValueError(
                f"sampler.options: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        if sampling.temperature != 1.0:
            raise ValueError(
                f"sampler.temperature is {sampling.temperature}; a rectified flow has none, set 1"
            )
        if "interval" in extra:
            low, high = extra["interval"]
            extra = {**extra, "interval": (float(low), float(high))}
        return cls(steps=sampling.steps, guidance=sampling.guidance, **extra)

    @property
    def is_guided(self) -> bool:
        """Whether any evaluation needs more than the full context."""
        return self.guidance > 1

    @property
    def uses_image_branch(self) -> bool:
        """Whether the context without pictures is needed."""
        return self.is_guided and self.image_guidance > 1

    def guides_at(self, t: float) -> bool:
        """Whether guidance is on at time t."""
        return self.is_guided and self.interval[0] < t <= self.interval[1]


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"sampler.options.{name} is {value!r}; choose {', '.join(allowed)}")


def shifted(t: Tensor, shift: float) -> Tensor:
    """Sigma t / (1 + (sigma - 1) t): time moved towards noise for sigma > 1."""
    return shift * t / (1 + (shift - 1) * t)


def times(steps: int, shift: float) -> Tensor:
    """The sampler's times from 1 to 0, float32 [steps]; the last one is not evaluated."""
    return shifted(torch.linspace(1, 0, steps), shift)


def guided(branches: Branches, options: FlowOptions) -> Tensor:
    """The guided and renormalised velocity [B, N, C] of three branches (bagel.md 4)."""
    v, without_text, without_image = branches
    assert without_text is not None, "guidance needs the context without text"
    text = without_text + options.guidance * (v - without_text)
    if options.renormalise == "text_channel":
        text = text * _scale(v, text, options, per_token=True)
    if without_image is not None and options.image_guidance > 1:
        text = without_image + options.image_guidance * (text - without_image)
    if options.renormalise == "text_channel":
        return text
    return text * _scale(v, text, options, per_token=options.renormalise == "channel")


def _scale(v: Tensor, guided_v: Tensor, options: FlowOptions, per_token: bool) -> Tensor:
    axes = [-1] if per_token else [-2, -1] if options.norm_over == "image" else [-3, -2, -1]
    found, wanted = (
        torch.linalg.vector_norm(part, dim=axes, keepdim=True) for part in (guided_v, v)
    )
    return (wanted / (found + _TINY)).clamp(min=options.renorm_min, max=1.0)


Velocity = Callable[[Tensor, float, bool], Branches]
"""(x [B, N, C], time, whether guidance is on) -> velocities of the branches."""


def sample(velocity: Velocity, noise: Tensor, options: FlowOptions) -> tuple[Tensor, list[Tensor]]:
    """Euler steps from noise [B, N, C] at t = 1 to t = 0: the latents, and x before each evaluation."""
    x, trajectory = noise, []
    moments = times(options.steps, options.timestep_shift)
    # differences in float32, as the reference takes them
    for t, step in zip(moments[:-1].tolist(), (moments[:-1] - moments[1:]).tolist(), strict=True):
        trajectory.append(x)
        on = options.guides_at(t)
        branches = velocity(x, t, on)
        v = guided(branches, options) if on else branches[0]
        x = x - v.float() * step
    return x, trajectory
