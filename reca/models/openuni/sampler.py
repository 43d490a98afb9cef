"""Images by DPM-Solver from conditions that are encoded once, and greedy answers.

Source: docs/reference/openuni.md a6 and d. Letters: B images, T text, Q queries, C latent channels, D width of a
condition, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from transformers import DynamicCache

from reca.core.finite import demand, finite_rows
from reca.core.structure import Positive
from reca.models.common import decoding
from reca.models.common.batching import moved, padded, row_noise
from reca.models.common.options import check_generation, sampler_options
from reca.models.openuni import layout
from reca.models.openuni.config import OpenUniConfig, OpenUniOptions
from reca.models.openuni.context import conditions
from reca.models.openuni.network import OpenUni
from reca.models.openuni.weights import STAGE_1

if TYPE_CHECKING:
    from reca.models.contract import Features, Sampling
    from reca.models.openuni.batch import Condition


@dataclass(frozen=True)
class FlowOptions:
    """How an image is sampled; the defaults are the authors'.

    `guidance` w: velocities are u + w (c - u), so 1 means none (0 is read as 1). `temperature`: 1, a flow has none.
    `flow_shift`: of the solver's noise levels.
    """

    steps: int = 20
    guidance: float = 4.5
    temperature: float = 1.0
    flow_shift: Positive = 3.0

    def __post_init__(self) -> None:
        if self.temperature != 1:
            raise ValueError(f"sampling.temperature is {self.temperature}; a flow has none, set 1")

    @classmethod
    def of(cls, sampling: Sampling) -> FlowOptions:
        """Read the contract's `Sampling`; ValueError on an option that OpenUni does not know."""
        return sampler_options(cls, sampling)

    @property
    def is_guided(self) -> bool:
        """Whether an unconditional branch is needed."""
        return self.guidance not in (0, 1)


class Parts(Protocol):
    """What sampling uses of a model."""

    config: OpenUniConfig
    options: OpenUniOptions
    network: OpenUni

    @property
    def kept(self) -> KeptConditions:
        """The unconditional branch of its images."""
        ...

    @property
    def text(self) -> Any:
        """The text front end."""
        ...


def autocast(network: OpenUni) -> torch.autocast:
    """bf16 where InternVL3 is kept in it, as the authors sample."""
    half = network.lmm.dtype == torch.bfloat16
    return torch.autocast(network.device.type, torch.bfloat16, enabled=half)


# ---- conditions ----------------------------------------------------------------------------------
class KeptConditions:
    """The unconditional branch, encoded once: again only where a weight it depends on was written or replaced."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}
        self._versions: tuple[Any, ...] = ()

    def of(self, network: OpenUni, ids: Sequence[int], encode: Callable[[], Tensor]) -> Tensor:
        """The condition [1, Q, D] of a prompt without an image."""
        own = network.named_parameters()
        used = [p for name, p in own if name.startswith((*STAGE_1, "lmm."))]
        versions = tuple((id(p), p._version, str(p.device)) for p in used)
        if versions != self._versions:
            self._kept, self._versions = {}, versions
        if tuple(ids) not in self._kept:
            self._kept[tuple(ids)] = encode()
        return self._kept[tuple(ids)]


def encoded(model: Parts, condition: Condition) -> Tensor:
    """Conditions [B, Q, D] of any prompts; each distinct one without an image is encoded once."""
    if condition.has_image:
        return conditions(model.network, model.options, condition)
    distinct = list(dict.fromkeys(tuple(text) for text in condition.texts))
    found = conditions(model.network, model.options, replace(condition, texts=distinct))
    return found[[distinct.index(tuple(text)) for text in condition.texts]]


def unconditional(model: Parts, condition: Condition, plain: Condition) -> Tensor:
    """What guidance pushes away from: no caption, or the same image with another prompt (openuni.md d)."""
    if condition.has_image:
        return encoded(model, replace(condition, texts=[condition.negative] * len(condition)))
    (ids,) = {tuple(text) for text in plain.texts}
    one = replace(plain, texts=[ids])
    found = model.kept.of(model.network, ids, lambda: encoded(model, one))
    return found.expand(len(condition), -1, -1)


# ---- the solver ----------------------------------------------------------------------------------
def solver(options: FlowOptions) -> DPMSolverMultistepScheduler:
    """The authors' solver: second order, midpoint, flow noise levels (openuni.md a6), with the state of one run."""
    found = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=options.flow_shift
    )
    found.set_timesteps(options.steps)
    return found


@dataclass(frozen=True)
class Step:
    """One step: the latents [B, C, h, w] after it, the guided velocity, and the branches' (unconditional first)."""

    latents: Tensor
    guided: Tensor
    branches: Tensor


def sample(
    network: OpenUni,
    given: Tensor,
    pushed: Tensor | None,
    noise: Tensor,
    options: FlowOptions,
) -> Iterator[Step]:
    """Run the solver from noise [B, C, h, w], conditions `given` and, with guidance, `pushed` [B, Q, D] each.

    The solver's state and guidance are float32.
    """
    run, x = solver(options), noise.float()
    both = given if pushed is None else torch.cat([pushed, given])
    for t in run.timesteps:
        rows = x if pushed is None else torch.cat([x, x])
        times = moved(t, x.device).expand(len(rows))
        branches = network.velocity(rows.to(both.dtype), both, times).float()
        guided = branches
        if pushed is not None:
            without, with_text = branches.chunk(2)
            guided = without + options.guidance * (with_text - without)
        x = run.step(guided, t, x, return_dict=False)[0]
        yield Step(x, guided, branches)


@torch.no_grad()
def sample_latents(
    model: Parts,
    condition: Condition,
    plain: Condition | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Latents [B, C, h, w] of one image per row; row i takes its noise from `generators[i]` alone."""
    options, network = FlowOptions.of(sampling), model.network
    needed = options.guidance if options.is_guided and not condition.has_image else None
    check_generation(len(condition), generators, plain, needed)
    shape = model.config.latent_shape
    noise = row_noise(generators, lambda g: torch.randn(shape, generator=g), network.device)
    with autocast(network):
        given, pushed = encoded(model, condition), None
        if options.is_guided:
            pushed = unconditional(model, condition, plain or condition)
        *_, last = sample(network, given, pushed, noise, options)
    demand(finite_rows(last.latents), "latents")
    return last.latents


# ---- answers -------------------------------------------------------------------------------------
@torch.no_grad()
def answers(
    model: Parts, questions: Sequence[str], pictures: Sequence[Features], max_new_tokens: int
) -> list[str]:
    """Greedy answers after the images in order and the question, one per row, up to the first end."""
    text, network = model.text, model.network
    rows = [text.question(q, len(pictures), model.options.system) for q in questions]
    read = [moved(features["understanding"], network.device) for features in pictures]
    images = torch.cat(read, dim=1) if read else None
    with autocast(network):
        steps = greedy(network, rows, images, max_new_tokens)
        return decoding.answers(steps, text, len(questions))


def greedy(
    network: OpenUni, rows: Sequence[Sequence[int]], images: Tensor | None, most: int
) -> decoding.Steps:
    """Logits [B, V] and the most likely ids [B] after prompts, token by token, until every row has ended."""
    end = network.config.special.end
    ids, mask = (moved(t, network.device) for t in padded(rows, end))
    mask, cache = mask.long(), DynamicCache()
    states = network.hidden(network.embed(ids, images), mask, layout.positions(mask), cache)
    position = mask.sum(dim=1, keepdim=True)
    last = states.gather(1, (position - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    head = network.lmm.lm_head

    def advance(token: Tensor) -> Tensor:
        nonlocal mask, position
        mask = torch.cat([mask, torch.ones_like(position)], dim=1)
        state = network.hidden(network.embed(token.unsqueeze(1)), mask, position, cache)
        position = position + 1
        return head(state[:, 0])

    return decoding.greedy(head(last[:, 0]), advance, end, most)
