"""BAGEL's training step in one packed pass and in two phases: time and memory, compared in one run.

    python -m perf.bagel_two_phase --out docs/results/bagel_two_phase.json

Both give the same loss and gradients (verified here). Time is CPU time, the median of interleaved repetitions; memory
is the bytes that autograd saves for the backward pass, each storage counted once.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import pairs, processor
from reca.core.artifacts import versions, write_json
from reca.core.rng import generator
from reca.models.bagel.batch import Condition, FlowNoise
from reca.models.bagel.model import BagelModel
from reca.models.registry import build_model

STEPS = ("packed", "two_phase")
TEMPLATE = 16  # text tokens, the mean of the official templates


def scaled(width: int, layers: int, side: int) -> dict[str, Any]:
    """A network with BAGEL's proportions: 256 ViT tokens, `side` x `side` latent tokens, seven heads per key head."""
    resolution = side * 16
    return {
        "resolution": resolution,
        "condition_resolution": 224,
        "max_latent_size": side,
        "vit_max_num_patch_per_side": 16,
        "llm": {
            "vocab_size": 256,
            "hidden_size": width,
            "intermediate_size": width * 37 // 7,
            "num_hidden_layers": layers,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
        },
        "vit": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 14,
        },
        "vae": {
            "ch": 8,
            "ch_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "z_channels": 16,
            "norm_groups": 4,
        },
        "special": {"bos": 252, "eos": 253, "start_of_image": 254, "end_of_image": 255},
    }


class Sample:
    """A RecA batch: features and noise, the same for both kinds of step."""

    def __init__(self, model: BagelModel, batch: int) -> None:
        drawn = generator("bench", "two phase")
        config = model.config
        side = config.resolution // config.vae.downsample
        shape = (batch, 2 * config.vae.z_channels, side, side)
        self.target = {"target": torch.randn(shape, generator=drawn)}
        seen = torch.randn(batch, 256, config.vit.hidden_size, generator=drawn)
        texts = torch.randint(0, 250, (batch, TEMPLATE), generator=drawn).tolist()
        self.condition = Condition(texts, seen, torch.full((batch, 2), 16))
        self.noise: FlowNoise = model.sample_noise(batch, drawn)


def loss_of(model: BagelModel, sample: Sample, kind: Any) -> Tensor:
    """The loss by one kind of step."""
    model.options = replace(model.options, step=kind)
    return model.generation_loss(sample.target, sample.condition, sample.noise).mean


def step(model: BagelModel, sample: Sample, kind: Any) -> Tensor:
    """Loss and backward pass of one kind."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, sample, kind)
    loss.backward()
    return loss.detach()


def largest_difference(model: BagelModel, sample: Sample) -> float:
    """Largest difference of any gradient between the two kinds, relative to that gradient's largest value."""
    one, other = (pairs.gradients(model, partial(step, model, sample, kind)) for kind in STEPS)
    assert set(one) == set(other)
    return max(
        float((one[n] - other[n]).abs().max() / one[n].abs().max().clamp(min=1e-12)) for n in one
    )


def measure(width: int, layers: int, side: int, batch: int, repetitions: int) -> dict[str, Any]:
    """The content of the result file."""
    torch.manual_seed(0)
    model = build_model("bagel", scaled(width, layers, side))
    assert isinstance(model, BagelModel)
    trained = set(model.trainable_parameters())
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    sample = Sample(model, batch)
    difference = largest_difference(model, sample)  # and warms both up
    calls = {kind: partial(step, model, sample, kind) for kind in STEPS}
    seconds, _ = pairs.alternating(calls, repetitions)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    memory = {
        kind: pairs.kept_bytes(model, partial(loss_of, model, sample, kind)) for kind in STEPS
    }
    return {
        "model": {"width": width, "layers": layers, "latent_tokens": side**2, "batch": batch},
        "processor_seconds": {k: {"median": medians[k], "all": seconds[k]} for k in STEPS},
        "kept_for_backward_bytes": memory,
        "packed_over_two_phase": {
            "time": medians["packed"] / medians["two_phase"],
            "memory": memory["packed"] / memory["two_phase"],
        },
        "largest_relative_gradient_difference": difference,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.width, given.layers, given.side, given.batch, given.repetitions)
    write_json(given.out, found)
    print(found["packed_over_two_phase"])


if __name__ == "__main__":
    main()
