"""BAGEL's training step as published and as here: time and memory, side by side in one run.

    python -m perf.bagel_step --out docs/results/bagel_step.json

`straightforward` is `perf.bagel_direct`: one pack, both experts scattered into each tensor. `ours` calls the package's
loss in two phases. Both checkpoint every layer, as published (bagel.md 5), and give the same loss and gradients of
the generation expert (checked here). What is measured: `perf.steps`.
"""

from __future__ import annotations

import argparse
import math
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import bagel_direct, pairs
from perf.steps import DIRECT, OURS, Losses, measured
from reca.align.distributed import trained_blocks, wrapped
from reca.align.state import freeze
from reca.core.artifacts import write_json
from reca.core.rng import generator
from reca.models.bagel.batch import Condition
from reca.models.bagel.layout import generation_pack
from reca.models.bagel.model import BagelModel
from reca.models.bagel.vision import patchify, position_ids
from reca.models.contract import Features
from reca.models.registry import build_model

TEMPLATE = 18  # tokens of a prompt, 16 words on average (bagel.md 5)


def scaled(width: int, layers: int) -> dict[str, Any]:
    """The network section of the released model with `width` for 3584 and `layers` for 28 (26 in the ViT).

    Tokens shrink as the width does, so that attention has its share of the work; `width` is 504 times a square.
    """
    share = width / 3584
    side = round(64 * math.sqrt(share))
    read = round(16 * math.sqrt(share))
    depth = layers / 28
    inner = max(32, 16 * round(1152 * share / 16))
    return {
        "resolution": 16 * side,
        "condition_resolution": 14 * read,
        "max_latent_size": side,
        "vit_max_num_patch_per_side": read,
        "llm": {
            "vocab_size": 256,
            "hidden_size": width,
            "intermediate_size": round(18944 * share),
            "num_hidden_layers": layers,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
        },
        "vit": {
            "hidden_size": inner,
            "intermediate_size": round(4304 * share),
            "num_hidden_layers": max(1, round(26 * depth)),
            "num_attention_heads": 4,
            "image_size": 14 * read,
            "patch_size": 14,
        },
        "vae": {
            "ch": max(4, 4 * round(32 * share * math.sqrt(depth))),
            "ch_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "z_channels": 16,
            "norm_groups": 4,
        },
        "special": {"bos": 252, "eos": 253, "start_of_image": 254, "end_of_image": 255},
    }


class Sample:
    """A RecA batch: pixels, prompts and noise, the same for both sides, and what the cache would hold."""

    def __init__(self, model: BagelModel, batch: int) -> None:
        self.model, config = model, model.config
        drawn = generator("bench", "bagel step")
        side, read = config.resolution, config.condition_resolution

        def pixels(size: int) -> Tensor:
            return torch.rand(batch, 3, size, size, generator=drawn) * 2 - 1

        self.drawn, self.read = pixels(side), pixels(read)
        share = config.llm.hidden_size / 3584
        length = max(1, round(TEMPLATE * share))
        self.texts = torch.randint(0, 250, (batch, length), generator=drawn).tolist()
        self.noise = model.sample_noise(batch, drawn)
        grid = read // config.vit.patch_size
        self.grid = torch.full((batch, 2), grid)
        self.ids = position_ids((grid, grid), config.vit_max_num_patch_per_side).expand(batch, -1)
        self.features = self.encoded()
        self.clean, self.seen = self.encoded_directly()

    @torch.no_grad()
    def encoded(self) -> Features:
        """What the cache holds of the batch: VAE moments and ViT states."""
        model = self.model
        patches = patchify(self.read, model.config.vit.patch_size)
        states = model.network.vit_model(patches, self.ids)
        return {
            "target": model.frozen.moments(self.drawn),
            "understanding": states,
            "grid": self.grid,
        }

    @torch.no_grad()
    def encoded_directly(self) -> tuple[Tensor, Tensor]:
        """Clean latent tokens [Sl, C] and ViT states [Sv, Dvit] as the published step makes them."""
        model, config = self.model, self.model.config
        patches = patchify(self.read, config.vit.patch_size)
        states = bagel_direct.vit_states(model.network, patches, self.ids)
        clean = bagel_direct.clean_tokens(
            model.frozen, self.drawn, self.noise.posterior, config.latent_patch_size
        )
        return clean, states.flatten(0, 1)

    def straightforward(self) -> Tensor:
        """The published loss."""
        noise, model = self.noise, self.model
        # a text is dropped with probability .1 (2)
        drops = (noise.text_dropout < 0.1).tolist()
        texts = [None if drop else text for text, drop in zip(self.texts, drops, strict=True)]
        condition = Condition(texts, self.features["understanding"], self.grid)
        packed = generation_pack(condition, model.config)
        tokens = noise.gaussian.shape[1]
        raw = noise.raw.repeat_interleave(tokens)
        gaussian = noise.gaussian.flatten(0, 1)
        return bagel_direct.loss(model.network, packed, self.seen, self.clean, gaussian, raw)

    def ours(self) -> Tensor:
        """The package's loss."""
        condition = Condition(self.texts, self.features["understanding"], self.grid)
        return self.model.generation_loss(self.features, condition, self.noise).mean

    def step(self, kind: str) -> Losses:
        """Forward and backward pass of one kind."""
        self.model.zero_grad(set_to_none=True)
        with self.recomputed(kind):
            loss = self.loss(kind)
            loss.backward()
        return {"reca": float(loss.detach())}

    def encode(self, kind: str) -> object:
        """The frozen encoders of one kind."""
        return self.encoded_directly() if kind == DIRECT else self.encoded()

    def kept_bytes(self, kind: str) -> int:
        """The bytes that autograd keeps between the passes."""
        with self.recomputed(kind):
            return pairs.kept_bytes(self.model, partial(self.loss, kind))

    def loss(self, kind: str) -> Tensor:
        """The loss of one kind."""
        return self.straightforward() if kind == DIRECT else self.ours()

    def recomputed(self, kind: str) -> AbstractContextManager[None]:
        """Context in which ours recomputes its trained blocks; the published loop does so itself."""
        return wrapped(trained_blocks(self.model), recompute=kind == OURS)


def measure(width: int, layers: int, batch: int, repetitions: int) -> dict[str, Any]:
    """Everything that the result file holds."""
    torch.manual_seed(0)
    model = build_model("bagel", scaled(width, layers))
    assert isinstance(model, BagelModel)
    freeze(model)
    sizes = {"width": width, "layers": layers, "batch": batch, "network": scaled(width, layers)}
    return {"model": sizes} | measured(Sample(model, batch), repetitions)


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=504)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.width, given.layers, given.batch, given.repetitions)
    write_json(given.out, found)
    print(found["straightforward_over_ours"], found["ours_over_straightforward"])


if __name__ == "__main__":
    main()
