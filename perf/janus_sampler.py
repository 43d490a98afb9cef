"""Janus-Pro's sampler against a direct transcription of the published loop, in one run on one machine.

    python -m perf.janus_sampler --out docs/results/janus_sampler.json

Both sides share the weights (random, at the sizes of Janus-Pro-1B but four layers), the codes before a step and the
uniform numbers by which codes are chosen, and must give the same codes and logits. The direct side is
`perf.janus_direct`. A setting is prompts x images of each: `4x1` are four prompts of different lengths with one image
each, which the published script samples one after another; `1x4` are four images of one prompt, which it samples in
one batch. The package samples all images in one batch. The time of a step grows linearly with the codes before it, so
steps at evenly spaced places represent all 576; repeats of the two sides alternate; times are CPU seconds of the
process (other processes share the machine). `laptop` in a setting: the sizes of config/model/janus_tiny.yaml with 576
codes, where calls and not products take the time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from perf import pairs
from perf.janus_direct import Direct
from reca.models.janus import sampler
from reca.models.janus.batch import Condition
from reca.models.janus.config import LLAMA_1B, JanusConfig
from reca.models.janus.layout import without_condition
from reca.models.janus.network import Janus

LAYERS, GUIDANCE, PAD = 4, 5.0, 2
SETTINGS = ("4x1", "1x4", "laptop4x1", "laptop1x4")
_LAPTOP = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Setting:
    """Prompts, images of each, and whether the model has the laptop's sizes."""

    prompts: int
    images: int
    laptop: bool = False

    @classmethod
    def of(cls, text: str) -> Setting:
        """`4x1`, `laptop1x4`; ValueError on another form."""
        prompts, _, images = text.removeprefix("laptop").partition("x")
        if not (prompts.isdecimal() and images.isdecimal() and int(prompts) * int(images)):
            raise ValueError(f"setting {text!r}: write prompts x images, as 4x1 or laptop1x4")
        return cls(int(prompts), int(images), text.startswith("laptop"))

    def texts(self) -> list[list[int]]:
        """Ids of the prompts, of different lengths, from bos (0) to begin-of-image (1)."""
        return [[0, *range(10, 25 + 5 * n), 1] for n in range(self.prompts)]


@cache
def build(laptop: bool) -> Janus:
    """The trained network at 384 pixels with four layers; random weights."""
    torch.manual_seed(0)
    llm = LLAMA_1B | {"num_hidden_layers": LAYERS, "vocab_size": 1000}
    return Janus(JanusConfig(llm=llm | (_LAPTOP if laptop else {}))).eval()


class Sides:
    """Both loops after their prompts and the first `past` codes."""

    def __init__(self, network: Janus, setting: Setting, past: int) -> None:
        self.network, self.setting, self.past = network, setting, past
        generator = torch.Generator().manual_seed(past)
        images = setting.prompts * setting.images
        shape = (images, max(past, 1))
        codes = torch.randint(network.config.vq.num_embeddings, shape, generator=generator)
        self.uniform = torch.rand(images, 1, generator=generator, dtype=torch.float64)
        texts = [text for text in setting.texts() for _ in range(setting.images)]
        self._ours(texts, codes)
        self._direct(codes)

    def _ours(self, texts: list[list[int]], codes: Tensor) -> None:
        condition = Condition(texts, PAD)
        prompts, embeddings = sampler.prepare(self.network, condition, condition)
        length = prompts.real.shape[1]
        self.decoder = sampler.Decoder(self.network, prompts.real, length + 576)
        self.decoder(embeddings)
        both = self.network.embed_codes(codes).repeat(2, 1, 1)
        self.logits = self.decoder.code_logits(self.decoder(both))
        self.columns = self.decoder.past

    def _direct(self, codes: Tensor) -> None:
        self.loops = []
        for number, text in enumerate(self.setting.texts()):
            rows = (torch.tensor(text), torch.tensor(without_condition(text, PAD, 0)))
            loop = Direct(self.network, rows, self.setting.images)
            own = slice(number * self.setting.images, (number + 1) * self.setting.images)
            loop.feed(codes[own])
            self.loops.append((loop, own, loop.hidden))

    def direct(self) -> tuple[Tensor, Tensor]:
        """Codes [B] of the step and the guided logits [B, K] after it, one prompt after another."""
        found = []
        for loop, own, _ in self.loops:
            choose = sampler.multinomial(self.uniform[own], 1.0)
            found.append((loop.step(GUIDANCE, choose, 0), loop.logits(GUIDANCE)))
        codes, logits = (torch.cat(part) for part in zip(*found, strict=True))
        return codes, logits

    def ours(self) -> tuple[Tensor, Tensor]:
        """The same through the package, all prompts at once."""
        guided = sampler.with_guidance(self.logits, GUIDANCE, 2)
        codes = sampler.multinomial(self.uniform, 1.0)(0, guided)
        logits = sampler.next_logits(self.network, self.decoder, codes, 2)
        return codes, sampler.with_guidance(logits, GUIDANCE, 2)

    def back(self) -> None:
        """Undo the step on both sides."""
        self.decoder.past = self.columns
        for loop, _, hidden in self.loops:
            loop.back(1, hidden)


def measured_step(network: Janus, setting: Setting, past: int, repeats: int) -> dict[str, Any]:
    """Both sides on the step after `past` codes, alternating; codes and logits must agree."""
    sides = Sides(network, setting, past)
    calls = {"direct": sides.direct, "ours": sides.ours}
    pairs.alternating(calls, 1, sides.back)  # warms up
    times, results = pairs.alternating(calls, repeats, sides.back)
    (expected_codes, expected), (codes, logits) = results["direct"], results["ours"]
    assert torch.equal(codes, expected_codes), f"step {past}: the codes differ"
    error = pairs.relative_difference(logits, expected, f"step {past}")
    entry = {"codes_before": past, "relative_difference": error}
    entry |= {f"{side}_seconds": median(t) for side, t in times.items()}
    print(json.dumps(entry), flush=True)
    return entry


@torch.no_grad()
def measured(setting: Setting, points: int, repeats: int) -> dict[str, Any]:
    """One setting: steps at evenly spaced places, and the whole loop by both sides."""
    network = build(setting.laptop)
    codes = network.config.num_codes
    places = [round(codes * (2 * point + 1) / (2 * points)) for point in range(points)]
    steps = [measured_step(network, setting, past, repeats) for past in places]
    whole = {
        side: sum(step[f"{side}_seconds"] for step in steps) * codes / points
        for side in ("direct", "ours")
    }
    return {
        "width": network.config.width,
        "prompts": setting.prompts,
        "images_per_prompt": setting.images,
        "repeats": repeats,
        "measured_steps": steps,
        "whole_loop_seconds": whole,
        "speedup": whole["direct"] / whole["ours"],
    }


def main() -> None:
    """Measure all settings and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=3, help="steps of the loop to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = f"Janus-Pro-1B or the laptop's model with {LAYERS} layers, fp32, 576 codes, guidance {GUIDANCE}"

    def measure(setting: str) -> dict[str, Any]:
        return measured(Setting.of(setting), given.points, given.repeats)

    pairs.write_settings(given.out, __doc__.split("\n")[0], sizes, given.settings, measure)


if __name__ == "__main__":
    main()
