"""Show-o's sampler against a transcription of the published loop, in one run on one machine.

    python -m perf.showo_sampler --out docs/results/showo_sampler.json

Both sides share the weights (random, in the proportions of Show-o at 512 pixels, see `perf.showo_step.scaled`) and all
noise, drawn beforehand, and must give the same codes. The direct side is `perf.showo_direct.Sampler`: every step runs
the prefix, too, and takes logits of all positions over the full vocabulary. A setting is a number of prompts, which the
published scripts sample one after another and the package in one batch. Loops have 8 steps in place of 50; repeats of
the two sides alternate; times are CPU seconds of the process (other processes share the machine). The floating point
operations of matrix products and attention are counted, too: their ratio is the speed-up of a machine that is limited
by matrix products alone. Neither side decodes the image.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from perf import pairs, showo_direct
from perf.counting import Dispatched
from perf.showo_direct import Drawn
from perf.showo_step import scaled
from reca.models.registry import build_model
from reca.models.showo import sampler
from reca.models.showo.batch import Condition
from reca.models.showo.model import ShowoModel

WIDTH, LAYERS, STEPS, GUIDANCE = 1152, 2, 8, 5.0
SETTINGS = ("1",)
_PROMPT = 12  # tokens


@cache
def build(width: int, layers: int) -> ShowoModel:
    """The model; small random weights."""
    torch.manual_seed(0)
    model = build_model("showo", scaled(width, layers))
    assert isinstance(model, ShowoModel)
    return model


class Sides:
    """Both loops, their prompts and noise."""

    def __init__(self, model: ShowoModel, prompts: int, steps: int) -> None:
        self.model, self.steps, config = model, steps, model.config
        generator = torch.Generator().manual_seed(prompts)
        ids = config.ids
        words = torch.randint(0, ids.eos, (prompts, _PROMPT + prompts), generator=generator)
        lengths = range(_PROMPT, _PROMPT + prompts)
        self.texts = [
            [ids.bos, *row[:length], ids.eos]
            for row, length in zip(words.tolist(), lengths, strict=True)
        ]
        shape = (steps, prompts, config.num_vq_tokens)
        exponential = torch.empty(*shape, config.codebook_size).exponential_(generator=generator)
        self.noise = exponential, torch.rand(shape, generator=generator)

    def direct(self) -> Tensor:
        """Codes [B, N] by the transcription, one prompt after another."""
        exponential, uniform = self.noise
        found = []
        for number, text in enumerate(self.texts):
            one = slice(number, number + 1)
            loop = showo_direct.Sampler(self.model.network, [text], self.steps, GUIDANCE)
            drawn = zip(exponential[:, one], uniform[:, one], strict=True)
            found.append(loop(Drawn(*noise) for noise in drawn))
        return torch.cat(found)

    @torch.no_grad()
    def ours(self) -> Tensor:
        """The same by the package, all prompts at once."""
        model, (exponential, uniform) = self.model, self.noise
        condition, empty = Condition(self.texts), model.unconditional(len(self.texts))
        logits = sampler.code_logits(model.network, model.options, condition, empty)
        masked = torch.ones(uniform.shape[1:], dtype=torch.bool)
        options = sampler.SamplerOptions(GUIDANCE, self.steps)
        *_, last = sampler.sample(
            logits, masked, options, lambda step, _: (exponential[step], uniform[step])
        )
        return last.codes


def measured(model: ShowoModel, prompts: int, steps: int, repeats: int) -> dict[str, Any]:
    """One setting: the whole loop by both sides, which must give the same codes."""
    sides = Sides(model, prompts, steps)
    calls = {"direct": sides.direct, "ours": sides.ours}
    counted = {}
    for side, call in calls.items():  # and warms up
        with Dispatched() as counter:
            call()
        counted[side] = {"operations": counter.operations, "gigaflops": counter.flops / 1e9}
    times, codes = pairs.alternating(calls, repeats)
    assert torch.equal(codes["ours"], codes["direct"]), "the codes differ"
    whole = {side: median(values) for side, values in times.items()}
    found = {
        "prompts": prompts,
        "repeats": repeats,
        "seconds": times,
        "whole_loop_seconds": whole,
        "counted": counted,
        "ratio_of_flops": counted["direct"]["gigaflops"] / counted["ours"]["gigaflops"],
        "speedup": whole["direct"] / whole["ours"],
    }
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure all settings and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = build(WIDTH, LAYERS)
    config = model.config
    sizes = (
        f"width {WIDTH}, {LAYERS} layers, {config.num_vq_tokens} codes of {config.codebook_size}, vocabulary "
        f"{config.vocab_size}, prefix of {config.max_text + 1}, fp32, {STEPS} steps, guidance {GUIDANCE}"
    )

    def measure(setting: str) -> dict[str, Any]:
        return measured(model, int(setting), STEPS, given.repeats)

    pairs.write_settings(given.out, __doc__.split("\n")[0], sizes, given.settings, measure)


if __name__ == "__main__":
    main()
