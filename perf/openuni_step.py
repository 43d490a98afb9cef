"""OpenUni's RecA step as published and as here: time and memory, side by side in one run.

    python -m perf.openuni_step --out docs/results/openuni_step.json

`straightforward` runs ViT and autoencoder on the images of every step, and prompt and queries in one pass with
gradient (openuni.md g2, g3); `cached` takes embeddings and latents from the cache, runs the prompt without gradient
and computes the language model's layers again in the backward pass of the queries. Both give the same loss and
gradients (checked here again). Time is processor time, as the median of interleaved repetitions, so that other load on
the machine changes little. Memory is the peak of resident memory in a step above what was there before, each kind in a
process of its own, and the bytes that autograd keeps for the backward pass, each storage once.
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
from reca.models.contract import Features
from reca.models.openuni.batch import Condition
from reca.models.openuni.encoders import vit_input
from reca.models.openuni.model import OpenUniModel
from reca.models.registry import build_model

KINDS = ("straightforward", "cached")
TEMPLATE = 16  # text tokens, the mean of the official templates


def scaled(width: int, layers: int) -> dict[str, Any]:
    """B-512's proportions with its own numbers of tokens: widths as `width` to 896, depths as `layers` to 24."""
    share, depth = width / 896, layers / 24
    heads = max(1, round(36 * share))
    channels = [max(8, round(c * share / 8) * 8) for c in (128, 256, 512, 512, 1024, 1024)]
    return {
        "resolution": 512,
        "queries": 256,
        "llm": {
            "vocab_size": 256,
            "hidden_size": width,
            "intermediate_size": round(4864 * share),
            "num_hidden_layers": layers,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
        },
        "vit": {
            "hidden_size": round(1024 * share),
            "intermediate_size": round(4096 * share),
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
        },
        "connector": {
            "intermediate_size": round(3072 * share),
            "num_hidden_layers": max(1, round(6 * depth)),
            "num_attention_heads": 7,
        },
        "sana": {
            "num_layers": max(1, round(28 * depth)),
            "num_attention_heads": heads,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": heads * 8,
            "caption_channels": round(2304 * share),
        },
        "vae": {
            "attention_head_dim": 8,
            "channels": channels,
            "encoder_layers": [max(1, round(n * depth * 2)) for n in (2, 2, 2, 3, 3, 3)],
            "decoder_layers": [1] * 6,
        },
        "special": {"image_start": 252, "image_end": 253, "image": 254, "end": 255},
    }


class Sample:
    """A RecA batch: pixels, prompts and noise, the same for both kinds of step, and what the cache would hold."""

    def __init__(self, model: OpenUniModel, batch: int) -> None:
        drawn, config = generator("bench", "openuni"), model.config
        side = config.resolution
        self.pixels = torch.rand(batch, 3, side, side, generator=drawn) * 2 - 1
        texts = torch.randint(0, 250, (batch, TEMPLATE), generator=drawn).tolist()
        image = [config.special.image] * config.vit.tokens
        self.texts = [[*image, *text] for text in texts]
        self.noise = model.sample_noise(batch, drawn)
        self.features = encoded(model, self.pixels)


@torch.no_grad()
def encoded(model: OpenUniModel, pixels: Tensor) -> Features:
    """What is computed of images [B, 3, H, W] before anything is trained."""
    seen = model.network.read(vit_input(pixels, model.config.vit.image_size))
    return {"target": model.frozen.latents(pixels), "understanding": seen}


def loss_of(model: OpenUniModel, sample: Sample, kind: str) -> Tensor:
    """The loss by one kind of step."""
    cached = kind == "cached"
    model.options = replace(model.options, step="two_phase" if cached else "one_pass")
    features = sample.features if cached else encoded(model, sample.pixels)
    condition = Condition(sample.texts, understanding=features["understanding"])
    return model.generation_loss(features, condition, sample.noise).mean


def step(model: OpenUniModel, sample: Sample, kind: str) -> Tensor:
    """Loss and backward pass of one kind."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, sample, kind)
    loss.backward()
    return loss.detach()


# ---- everything ----------------------------------------------------------------------------------
def difference_of(model: OpenUniModel, sample: Sample) -> float:
    """Relative difference of the gradients of the two kinds."""
    one, other = (pairs.gradients(model, partial(step, model, sample, kind)) for kind in KINDS)
    assert set(one) == set(other)
    return pairs.gradient_difference(other, one)


def measure(width: int, layers: int, batch: int, repetitions: int) -> dict[str, Any]:
    """Everything that the result file holds."""
    torch.manual_seed(0)
    model = build_model("openuni", scaled(width, layers))
    assert isinstance(model, OpenUniModel)
    sample = Sample(model, batch)
    calls = {kind: partial(step, model, sample, kind) for kind in KINDS}
    peaks = {kind: pairs.peak_bytes(call) for kind, call in calls.items()}  # before memory is kept
    difference = difference_of(model, sample)  # and warms both up
    seconds, _ = pairs.alternating(calls, repetitions)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    kept = {kind: pairs.kept_bytes(model, partial(loss_of, model, sample, kind)) for kind in KINDS}
    direct, ours = KINDS
    return {
        "model": {"width": width, "layers": layers, "batch": batch, "parts": parameters(model)},
        "processor_seconds": {k: {"median": medians[k], "all": seconds[k]} for k in KINDS},
        "peak_bytes": peaks,
        "kept_for_backward_bytes": kept,
        "straightforward_over_cached": {"time": medians[direct] / medians[ours]},
        "cached_over_straightforward": {
            "peak_memory": peaks[ours] / peaks[direct],
            "kept_for_backward": kept[ours] / kept[direct],
        },
        "relative_gradient_difference": difference,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }


def parameters(model: OpenUniModel) -> dict[str, int]:
    """Parameters by part."""
    network = model.network
    parts = {
        "vit": network.lmm.model.vision_tower,
        "llm": network.language,
        "connector": network.connector,
        "sana": network.transformer,
        "vae": model.frozen.vae,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=112)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.width, given.layers, given.batch, given.repetitions)
    write_json(given.out, found)
    print(found["straightforward_over_cached"], found["cached_over_straightforward"])


if __name__ == "__main__":
    main()
