"""Harmon's sampler against a direct transcription of the published loop, in one run on one machine.

    python -m perf.harmon_sampler --out docs/results/harmon_sampler.json

Both sides share the weights (random, with the sizes of Harmon-0.5B but four layers per tower), the state before a
step and all noise, and must give the same latents. The direct side is `perf.harmon_direct`. A setting is pixels x
images: `512x1`; `256x4` are four images of four prompts, which the published scripts generate sequentially;
`256x4same` are four of one prompt, which they generate in one batch, as for GenEval. The package generates all images
in one batch. Steps of the 64-step schedule are measured at the nodes of a Gauss-Legendre rule, whose sum is the time
of the loop; repetitions of the two sides alternate; times are CPU seconds of the process (other processes share the
machine). For the middle step, the operations that PyTorch dispatches are counted (on a GPU each is about one kernel
launch, which dominates there), and their floating point operations: matrix products and attention, which cannot be
avoided. The ratio of the latter is the speed-up of a machine limited by matrix products alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perf import pairs
from perf.counting import Dispatched
from perf.harmon_direct import Direct, Given
from reca.models.harmon import layout as layouts
from reca.models.harmon.batch import Condition
from reca.models.harmon.config import QWEN2_5, HarmonConfig, MarConfig
from reca.models.harmon.model import HarmonModel
from reca.models.harmon.sampler import (
    Drawing,
    SamplerOptions,
    draw_tokens,
    kept_masked,
    prepare,
)

LAYERS, STEPS, GUIDANCE = 4, 64, 3.0
UNCONDITIONAL = [1] * 11  # same length as the released one; the ids do not affect the time
SETTINGS = ("512x1", "256x1", "512x4", "256x4", "512x4same", "256x4same")


@dataclass(frozen=True)
class Setting:
    """Pixels per side, number of images, and whether they share one prompt."""

    resolution: int
    pictures: int
    same: bool

    @classmethod
    def of(cls, text: str) -> Setting:
        """`512x1`, `256x4`, `256x4same`; ValueError for any other form."""
        resolution, _, pictures = text.removesuffix("same").partition("x")
        if not (resolution.isdecimal() and pictures.isdecimal() and int(pictures)):
            raise ValueError(f"setting {text!r}: write pixels x images, such as 512x1 or 256x4same")
        return cls(int(resolution), int(pictures), text.endswith("same"))

    def batches(self) -> list[list[int]]:
        """Number of images that the published scripts generate at once."""
        every = list(range(self.pictures))
        return [every] if self.same else [[one] for one in every]

    def texts(self) -> list[list[int]]:
        """Ids of the prompts, of different lengths."""
        prompts = [list(range(100 + 40 * n, 115 + 41 * n)) for n in range(self.pictures)]
        return [prompts[0]] * self.pictures if self.same else prompts


# ---- the two sides of one step ------------------------------------------------------------------------
class Sides:
    """Both loops with their prompts already encoded."""

    def __init__(self, model: HarmonModel, setting: Setting) -> None:
        self.model, self.setting, texts = model, setting, setting.texts()
        self.loops = []
        for batch in setting.batches():
            rows = [texts[one] for one in batch] + [UNCONDITIONAL] * len(batch)
            found = layouts.prompts(rows, model.config.end)
            prompts = (found.ids, found.mask)
            self.loops.append(Direct(model.network, model.config.grid, prompts, GUIDANCE))
        unconditional = Condition([UNCONDITIONAL] * len(texts))
        self.drawing: Drawing = prepare(model.network, Condition(texts), unconditional)


class Step:
    """One step of the schedule: masked tokens before and after it, random tokens and noise, calls of both sides."""

    def __init__(self, number: int, sides: Sides) -> None:
        self.sides, config = sides, sides.model.config
        self.before, self.left = schedule(config.tokens)[number]
        generator = torch.Generator().manual_seed(number)
        batch, count = sides.setting.pictures, config.tokens
        channels, steps = config.mar.latent_channels, config.mar.sampling_steps
        self.orders = torch.stack(
            [torch.randperm(count, generator=generator) for _ in range(batch)]
        )
        self.tokens = torch.randn(batch, count, channels, generator=generator)
        hidden, _ = layouts.places(self.orders, self.before)
        self.tokens.scatter_(1, hidden.unsqueeze(-1).expand(-1, -1, channels), 0.0)
        # Small noise: an untrained reverse process amplifies it a thousandfold, which would hide any difference.
        shape = (batch, self.before - self.left, channels)
        self.first = torch.randn(*shape, generator=generator) * 1e-4
        self.later = torch.randn(steps, *shape, generator=generator) * 1e-4

    def direct(self) -> Tensor:
        """Run the transcription, one batch after another."""
        masked = torch.zeros(self.orders.shape, dtype=torch.bool)
        masked.scatter_(1, self.orders[:, : self.before], True)
        chosen = torch.zeros_like(masked).scatter_(1, self.orders[:, self.left : self.before], True)
        drawn = []
        for batch, loop in zip(self.sides.setting.batches(), self.sides.loops, strict=True):
            both = batch + batch
            noise = (self.first[batch].flatten(0, 1), self.later[:, batch].flatten(1, 2))
            given = Given(self.tokens[both], masked[both], chosen[both], noise)
            drawn.append(loop.step(given))
        return torch.cat(drawn)

    def ours(self) -> Tensor:
        """Run the package."""
        noise = (self.first.flatten(0, 1), self.later.flatten(1, 2))
        done = draw_tokens(
            self.sides.drawing,
            self.tokens,
            self.orders,
            (self.before, self.left),
            GUIDANCE,
            SamplerOptions(GUIDANCE, STEPS),
            lambda count: noise,
        )
        return done.drawn.flatten(0, 1)


def schedule(tokens: int) -> list[tuple[int, int]]:
    """Number of masked tokens before and after each of the 64 steps."""
    found, masked = [], tokens
    for step in range(STEPS):
        left = 0 if step == STEPS - 1 else kept_masked(step, STEPS, tokens, masked)
        found.append((masked, left))
        masked = left
    return found


# ---- counting -----------------------------------------------------------------------------------------
def counted(sides: Sides) -> dict[str, Any]:
    """Operations and flops of the middle step, for both sides."""
    step = Step(STEPS // 2, sides)
    found: dict[str, Any] = {"step": STEPS // 2}
    for side, call in (("direct", step.direct), ("ours", step.ours)):
        with Dispatched() as counter:
            call()
        found[side] = {"operations": counter.operations, "gigaflops": counter.flops / 1e9}
    found["ratio_of_flops"] = found["direct"]["gigaflops"] / found["ours"]["gigaflops"]
    return found


# ---- measuring ----------------------------------------------------------------------------------------
@cache
def build(resolution: int) -> HarmonModel:
    """Harmon-0.5B's sizes with four layers in language model, encoder and decoder; small random weights."""
    torch.manual_seed(0)
    mar = MarConfig(encoder_depth=LAYERS, decoder_depth=LAYERS)
    llm = {**QWEN2_5, "num_hidden_layers": LAYERS}
    model = HarmonModel(HarmonConfig(llm=llm, mar=mar, resolution=resolution)).eval()
    perturbed(model)
    return model


def perturbed(model: HarmonModel) -> None:
    """Randomise the weights of the head that are initialised to zero, with which it would do nothing."""
    net = model.network.mar.diffloss.net
    for part in net.modulated:
        torch.nn.init.normal_(part.modulator.weight, std=0.02)
    torch.nn.init.normal_(net.final_layer.linear.weight, std=1e-3)


def measure_steps(sides: Sides, numbers: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Both sides on the chosen steps, alternating; the latents must agree."""
    found = []
    for number in numbers:
        step = Step(number, sides)
        sides_of_step = {"direct": step.direct, "ours": step.ours}
        times, drawn = pairs.alternating(sides_of_step, repeats)
        error = pairs.relative_difference(drawn["ours"], drawn["direct"], f"step {number}")
        entry = {"step": number, "tokens": step.before - step.left, "relative_difference": error}
        found.append(entry | {f"{side}_seconds": median(t) for side, t in times.items()})
        print(json.dumps(found[-1]), flush=True)
    return found


def measure_decoder(model: HarmonModel, pictures: int) -> dict[str, float]:
    """Time to decode both halves of one image, and the image alone, times the number of images."""
    rows, columns = model.config.grid
    latents = torch.randn(2, rows, columns, model.config.mar.latent_channels)
    pixels = latents.permute(0, 3, 1, 2).contiguous() / model.config.vae.scale
    direct, _ = pairs.clocked(lambda: model.frozen.vae.decode(pixels))
    ours, _ = pairs.clocked(lambda: model.frozen.decode(latents[:1]))
    return {"direct_seconds": direct * pictures, "ours_seconds": ours * pictures}


def nodes(points: int) -> tuple[list[int], list[float]]:
    """Steps of the schedule and the number of steps that each represents: a Gauss-Legendre rule over the 64."""
    places, weights = np.polynomial.legendre.leggauss(points)
    steps = [round(float((place + 1) / 2 * STEPS - 0.5)) for place in places]
    return steps, [float(weight) / 2 * STEPS for weight in weights]


def measured(setting: Setting, points: int, repeats: int) -> dict[str, Any]:
    """Results of one setting: steps, decoder, operations, and the complete loop, for both sides."""
    model = build(setting.resolution)
    sides = Sides(model, setting)
    operations = counted(sides)
    numbers, weights = nodes(points)
    steps = measure_steps(sides, numbers, repeats)
    decoder = measure_decoder(model, setting.pictures)
    total = {
        side: sum(w * one[f"{side}_seconds"] for w, one in zip(weights, steps, strict=True))
        + decoder[f"{side}_seconds"]
        for side in ("direct", "ours")
    }
    return {
        "resolution": setting.resolution,
        "pictures": setting.pictures,
        "prompts": 1 if setting.same else setting.pictures,
        "repeats": repeats,
        "counted": operations,
        "measured_steps": steps,
        "decoder": decoder,
        "whole_loop_seconds": total,
        "speedup": total["direct"] / total["ours"],
    }


def main() -> None:
    """Measure all settings and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--points", type=int, default=2, help="steps of the schedule to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (
        f"Harmon-0.5B with {LAYERS} layers in each tower, fp32, {STEPS} steps, guidance {GUIDANCE}"
    )

    @torch.no_grad()
    def measure(setting: str) -> dict[str, Any]:
        return measured(Setting.of(setting), given.points, given.repeats)

    pairs.write_settings(given.out, __doc__.split("\n")[0], sizes, given.settings, measure)


if __name__ == "__main__":
    main()
