"""Harmon's training step as published and as here: time and memory, side by side in one run.

    python -m perf.harmon_step --out docs/results/harmon_step.json

A step is one micro-batch of RecA and one of conversations, in the proportions of Harmon-0.5B at 512 pixels.
`straightforward` is `perf.harmon_training`: everything checkpointed, padding in every row, the head on all rows. `ours`
calls the package's two losses, checkpointed as in its recipe (`all`), or in the language model only (`llm`, which no
recipe does: by an estimate of MAR's activations the published micro-batches would not fit 80 GB). Both sides give the
same losses and gradients (checked here). MAR's dropout is off: with it, attention on a CPU has no fast kernel, on
either side. What is measured: `perf.steps`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import harmon_training, pairs
from perf.steps import DIRECT, OURS, Losses, measured
from reca.align.distributed import trained_blocks, wrapped
from reca.align.state import freeze
from reca.core.artifacts import write_json
from reca.core.rng import generator
from reca.models.harmon.batch import Condition, Conversation
from reca.models.harmon.model import HarmonModel
from reca.models.registry import build_model

RECOMPUTED = ("all", "llm")
# tokens with template and placeholder: RecA's prompts (median 28, at most 64), and conversations of 250 on average,
# which is what the cost of a LLaVA image leaves (harmon.md e, g); how they spread is assumed
PROMPTS, CONVERSATIONS = (16, 24, 32, 48), (100, 200, 300, 400)


def scaled(width: int, layers: int) -> dict[str, Any]:
    """The network section of Harmon-0.5B at 512 pixels with `width` for 896 and `layers` for 24.

    Tokens shrink as the width does and the vocabulary also as the depth, so that attention, head and answers have their
    shares of the work. `width` is 224 times a square.
    """
    share, depth = width / 896, layers / 24
    side = round(32 * math.sqrt(share))
    mar, blocks = round(768 * share), max(1, round(12 * depth))
    heads = max(1, mar // 64)
    return {
        "resolution": 16 * side,
        "end": 0,
        "llm": {
            "hidden_size": width,
            "intermediate_size": round(4864 * share),
            "num_hidden_layers": layers,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "vocab_size": round(151936 * share * depth),
            "rope_theta": 1e6,
        },
        "mar": {
            "encoder_width": mar,
            "encoder_depth": blocks,
            "encoder_heads": heads,
            "decoder_width": mar,
            "decoder_depth": blocks,
            "decoder_heads": heads,
            "buffers": round(64 * share),
            "table": side // 2,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "head_depth": max(1, round(6 * depth)),
            "head_width": round(1024 * share),
        },
        # half as wide as that: narrow convolutions are slow, and the VAE is 8 % of the published step (harmon.md g9)
        "vae": {"width": 4 * max(1, round(16 * share * math.sqrt(depth))), "groups": 4},
    }


class Sample:
    """Two micro-batches in the forms that both sides read, and the latents of their images."""

    def __init__(self, model: HarmonModel, share: float, recompute: str = "all") -> None:
        self.model, config = model, model.config
        self.blocks = trained_blocks(model if recompute == "all" else model.network.llm)
        drawn = generator("bench", "harmon step")
        batch, side = len(PROMPTS), config.size[0]
        self.pixels = torch.rand(2, batch, 3, side, side, generator=drawn) * 2 - 1

        def text(length: int) -> list[int]:
            count = max(6, round(length * share))
            ids = torch.randint(1, config.language.vocab_size, (count,), generator=drawn).tolist()
            return [*ids[:3], harmon_training.IMAGE, *ids[4:]]

        self.prompts = [text(length) for length in PROMPTS]
        self.talks = [text(length) for length in CONVERSATIONS]
        self.labels = [  # questions, a fifth of the text, have no loss
            [
                harmon_training.IGNORE if n < 4 + len(row) // 5 else token
                for n, token in enumerate(row)
            ]
            for row in self.talks
        ]
        self.noise = model.sample_noise(batch, drawn)
        self.latents = self.encode(OURS)

    def encode(self, kind: str) -> tuple[Tensor, Tensor]:
        """Latents [B, m, n, C] of both micro-batches; both kinds run the same VAE."""
        drawn, read = (self.model.frozen.latents(pixels) for pixels in self.pixels)
        return drawn, read

    def losses(self, kind: str) -> dict[str, Callable[[], Tensor]]:
        """Losses by task, which are computed when they are called."""
        model, noise, (drawn, read) = self.model, self.noise, self.latents
        if kind == OURS:
            condition = Condition(self.prompts, self.prompts[0], latents=drawn)
            talk = Conversation(self.talks, self.labels)
            return {
                "reca": lambda: model.generation_loss({"target": drawn}, condition, noise).mean,
                "i2t": lambda: model.answer_loss(talk, {"latents": read}).mean,
            }
        # a tenth of the texts is dropped, the image stays (e)
        drops = (noise.text_dropout < 0.1).tolist()
        rows = zip(self.prompts, drops, strict=True)
        texts = [self.prompts[0] if drop else text for text, drop in rows]
        return {
            "reca": lambda: harmon_training.reconstruction_loss(
                model.network,
                drawn.flatten(1, 2),
                texts,
                noise.orders,
                noise.masked,
                (noise.t, noise.gaussian),
            ),
            "i2t": lambda: harmon_training.answer_loss(
                model.network, read.flatten(1, 2), self.talks, self.labels
            ),
        }

    def step(self, kind: str) -> Losses:
        """Forward and backward pass of each micro-batch."""
        self.model.zero_grad(set_to_none=True)
        found = {}
        with self.recomputed(kind):
            for task, call in self.losses(kind).items():
                loss = call()
                loss.backward()
                found[task] = float(loss.detach())
        return found

    def kept_bytes(self, kind: str) -> int:
        """The most bytes that autograd keeps between the passes."""
        with self.recomputed(kind):
            calls = self.losses(kind).values()
            return max(pairs.kept_bytes(self.model, call) for call in calls)

    def recomputed(self, kind: str) -> AbstractContextManager[None]:
        """Context in which ours recomputes its trained blocks; the published loop does so itself."""
        return wrapped(self.blocks, recompute=kind == OURS)


def build(width: int, layers: int) -> HarmonModel:
    """The model with random weights; those of the head that start at zero are random, too."""
    torch.manual_seed(0)
    model = build_model("harmon", scaled(width, layers))
    assert isinstance(model, HarmonModel)
    net = model.network.mar.diffloss.net
    for part in net.modulated:
        torch.nn.init.normal_(part.modulator.weight, std=0.02)
    torch.nn.init.normal_(net.final_layer.linear.weight, std=0.02)
    freeze(model)
    return model


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, share = build(given.width, given.layers), given.width / 896
    sizes = {"width": given.width, "layers": given.layers}
    found: dict[str, Any] = {
        "model": sizes | {"network": scaled(given.width, given.layers)},
        "recomputed": {},
    }
    for recompute in RECOMPUTED:
        measures = measured(Sample(model, share, recompute), given.repetitions)
        found["recomputed"][recompute] = measures
        write_json(given.out, found)
        print(recompute, measures[f"{DIRECT}_over_{OURS}"], measures[f"{OURS}_over_{DIRECT}"])


if __name__ == "__main__":
    main()
