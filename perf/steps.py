"""What the pairs of training steps share: two kinds of step, their time, memory and gradients.

Encoders and network are measured separately: the published loops run frozen encoders in every step, the package once
per image, into the cache. `time` compares the same work, an encoding included on both sides; `network` is the step
without encoders; `from_cache` compares what each loop runs; `network_flops` is what `network` would be on a machine
that is limited by products alone. Times are CPU seconds, medians of interleaved repetitions.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perf import pairs, processor
from perf.counting import Dispatched
from reca.core.artifacts import versions

DIRECT, OURS = KINDS = ("straightforward", "ours")
Losses = dict[str, float]


class Sample(Protocol):
    """A batch in the forms that both sides read."""

    @property
    def model(self) -> nn.Module:
        """The network that both sides train."""
        ...

    def step(self, kind: str) -> Losses:
        """Forward and backward pass of one kind, from gradients of zero; losses by task."""
        ...

    def encode(self, kind: str) -> object:
        """The frozen encoders of one kind."""
        ...

    def kept_bytes(self, kind: str) -> int:
        """The most bytes that autograd keeps between the passes."""
        ...


def compared(sample: Sample) -> tuple[float, float]:
    """Largest relative difference of a loss of ours, and the relative difference of the gradients."""
    losses: dict[str, Losses] = {}
    gradients: dict[str, dict[str, Tensor]] = {}

    def remembered(kind: str) -> None:
        losses[kind] = sample.step(kind)

    for kind in KINDS:
        gradients[kind] = pairs.gradients(sample.model, partial(remembered, kind))
    direct, ours = losses[DIRECT], losses[OURS]
    apart = max(abs(ours[task] - direct[task]) / direct[task] for task in ours)
    return apart, pairs.gradient_difference(gradients[OURS], gradients[DIRECT])


def gigaflops(sample: Sample, kind: str) -> float:
    """Floating point operations of products and attention in a step of one kind, without encoders."""
    with Dispatched() as counter:
        sample.step(kind)
    return counter.flops / 1e9


def measured(sample: Sample, repetitions: int) -> dict[str, Any]:
    """Time, memory and differences of the two kinds; AssertionError where they do not give the same gradients."""
    steps = {kind: partial(sample.step, kind) for kind in KINDS}
    peaks = {kind: pairs.peak_bytes(call) for kind, call in steps.items()}  # before memory is kept
    loss_difference, gradient_difference = compared(sample)  # and warms both up
    assert gradient_difference < 1e-4, f"the gradients differ by {gradient_difference:.1e}"
    seconds, _ = pairs.alternating(steps, repetitions)
    encoding, _ = pairs.alternating({k: partial(sample.encode, k) for k in KINDS}, repetitions)
    network = {kind: statistics.median(values) for kind, values in seconds.items()}
    frozen = {kind: statistics.median(values) for kind, values in encoding.items()}
    kept = {kind: sample.kept_bytes(kind) for kind in KINDS}
    counted = {kind: gigaflops(sample, kind) for kind in KINDS}
    both = network[DIRECT] + frozen[DIRECT]
    return {
        "network_seconds": {k: {"median": network[k], "all": seconds[k]} for k in KINDS},
        "encoder_seconds": {k: {"median": frozen[k], "all": encoding[k]} for k in KINDS},
        "encoders_share_of_straightforward": frozen[DIRECT] / both,
        "network_gigaflops": counted,
        "peak_bytes": peaks,
        "kept_for_backward_bytes": kept,
        "straightforward_over_ours": {
            "time": both / (network[OURS] + frozen[OURS]),
            "network": network[DIRECT] / network[OURS],
            "from_cache": both / network[OURS],
            "network_flops": counted[DIRECT] / counted[OURS],
        },
        "ours_over_straightforward": {
            "peak_memory": peaks[OURS] / peaks[DIRECT],
            "kept_for_backward": kept[OURS] / kept[DIRECT],
        },
        "relative_loss_difference": loss_difference,
        "relative_gradient_difference": gradient_difference,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
