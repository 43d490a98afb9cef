"""Harmon's sampler against a direct transcription of the published loop, in one run on one machine.

    python -m reca.bench.harmon_sampler --out docs/results/harmon_sampler.json

Both sides share the weights (random, at the sizes of Harmon-0.5B but four layers in each tower), the state before
a step, and every random draw, and must give the same latents. The direct side follows reference/harmon/SPEC.md
sections d3 and d4 as the official code runs them: one prompt at a time; both halves of guidance through encoder,
language model, decoder and VAE; position tables resized in every call; in every reverse step the whole head, with its
tables copied from float64 arrays. With several pictures, each with its own prompt, the package draws them in one
batch. Steps are taken from the 64-step schedule at even distances; repeats of the two sides alternate; times are CPU
seconds of the process (other processes share the machine). Beside them the operations that PyTorch dispatches are
counted: on a GPU each is about one kernel launch, and there the loop is bound by launches.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from reca.models.harmon import layout as layouts
from reca.models.harmon.config import QWEN2_5, HarmonConfig, MarConfig
from reca.models.harmon.diffusion import HeadNet, tables
from reca.models.harmon.model import Condition, HarmonModel
from reca.models.harmon.network import Harmon
from reca.models.harmon.sampler import Drawing, SamplerOptions, draw_tokens, kept_masked
from reca.records import versions

LAYERS, STEPS, GUIDANCE = 4, 64, 3.0
UNCONDITIONAL = [1] * 11  # as long as the released one; which ids does not matter for the time


# ---- the published loop, transcribed -----------------------------------------------------------------
class Direct:
    """One call per module, as SPEC d4 writes it: conditional and unconditional rows side by side throughout."""

    def __init__(self, network: Harmon, grid: tuple[int, int], ids: Tensor, mask: Tensor) -> None:
        self.network, self.grid, self.mask = network, grid, mask
        self.cache = DynamicCache()
        network.hidden(network.embed(ids), cache=self.cache)
        arrays = vars(tables(network.mar.diffloss.sampling_steps))
        self.tables = {name: value.numpy() for name, value in arrays.items()}

    def step(
        self, tokens: Tensor, masked: Tensor, chosen: Tensor, noise: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Latents [rows, C] of the places `chosen` [2b, L] (bool) with `masked` ones hidden, conditional half."""
        mar, network = self.network.mar, self.network
        visible = (~masked).nonzero()[:, 1].view(len(masked), -1)
        seen = mar.encode(tokens, self.grid, visible)
        image = network.to_llm(seen)
        mask = torch.cat([self.mask, self.mask.new_ones(image.shape[:2])], dim=1)
        hidden = network.hidden(
            image,
            mask=mask,
            positions=layouts.positions(mask)[:, -image.shape[1] :],
            cache=self.cache,
        )
        self.cache.crop(-image.shape[1])
        z = mar.decode(network.with_context(seen, hidden), self.grid, visible)
        return self.reverse(z[chosen], noise)

    def reverse(self, z: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        """The respaced reverse process, both halves at every step."""
        net, half = self.network.mar.diffloss.net, len(z) // 2
        x = torch.cat([noise[0], noise[0]])
        for index in reversed(range(self.network.mar.diffloss.sampling_steps)):
            t = torch.full((len(x),), index)
            mean, log_variance = self._posterior(net, x, t, z)
            drawn = torch.cat([noise[1][-1 - index]] * 2)
            shown = (t != 0).float().unsqueeze(-1)
            x = mean + shown * torch.exp(0.5 * log_variance) * drawn
            x = torch.cat([x[:half], x[:half]])
        return x[:half]

    def _posterior(self, net: HeadNet, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        half = len(x) // 2
        eps, raw = net(x, self._gather("timesteps", t)[:, 0].long(), z).chunk(2, dim=-1)
        guided = eps[half:] + GUIDANCE * (eps[:half] - eps[half:])
        eps = torch.cat([guided, guided])
        low = self._gather("posterior_log_variance_clipped", t)
        high = torch.log(self._gather("betas", t))
        share = (raw + 1) / 2
        start = self._gather("sqrt_recip_alphas_cumprod", t) * x
        start = start - self._gather("sqrt_recipm1_alphas_cumprod", t) * eps
        mean = self._gather("posterior_mean_coef1", t) * start
        mean = mean + self._gather("posterior_mean_coef2", t) * x
        return mean, share * high + (1 - share) * low

    def _gather(self, name: str, t: Tensor) -> Tensor:
        found: Tensor = torch.from_numpy(np.asarray(self.tables[name])).to(t.device)[t].float()
        return found.unsqueeze(-1)


# ---- the two sides of one step ------------------------------------------------------------------------
class Step:
    """A state of the schedule: what is masked before and behind, random tokens and noise, both sides' calls."""

    def __init__(self, number: int, model: HarmonModel, texts: Sequence[list[int]]) -> None:
        config = model.config
        self.before, self.left = schedule(config.tokens)[number]
        generator = torch.Generator().manual_seed(number)
        batch, count, channels = len(texts), config.tokens, config.mar.latent_channels
        self.orders = torch.stack([torch.randperm(count, generator=generator) for _ in texts])
        self.tokens = torch.randn(batch, count, channels, generator=generator)
        hidden, _ = layouts.places(self.orders, self.before)
        self.tokens.scatter_(1, hidden.unsqueeze(-1).expand(-1, -1, channels), 0.0)
        rows = batch * (self.before - self.left)
        steps = config.mar.sampling_steps
        # Small noise: an untrained reverse process grows it a thousandfold, which would hide any difference.
        self.noise = (
            torch.randn(rows, channels, generator=generator) * 1e-4,
            torch.randn(steps, rows, channels, generator=generator) * 1e-4,
        )

    def direct(self, loops: Sequence[Direct]) -> Tensor:
        """Through the transcription, one prompt after another."""
        masked = torch.zeros(self.orders.shape, dtype=torch.bool)
        masked.scatter_(1, self.orders[:, : self.before], True)
        chosen = torch.zeros_like(masked).scatter_(1, self.orders[:, self.left : self.before], True)
        count, drawn = self.before - self.left, []
        for row, loop in enumerate(loops):
            tokens, hidden, wanted = (
                x[row].unsqueeze(0).expand(2, *x[row].shape) for x in (self.tokens, masked, chosen)
            )
            rows = slice(row * count, (row + 1) * count)
            noise = (self.noise[0][rows], self.noise[1][:, rows])
            drawn.append(loop.step(tokens, hidden, wanted, noise))
        return torch.cat(drawn)

    def ours(self, drawing: Drawing) -> Tensor:
        """Through the package."""
        options = SamplerOptions(GUIDANCE, STEPS)
        done = draw_tokens(
            drawing,
            self.tokens,
            self.orders,
            (self.before, self.left),
            GUIDANCE,
            options,
            lambda count: self.noise,
        )
        return done.drawn.flatten(0, 1)


def schedule(tokens: int) -> list[tuple[int, int]]:
    """Masked tokens before and behind each of the 64 steps."""
    found, masked = [], tokens
    for step in range(STEPS):
        left = 0 if step == STEPS - 1 else kept_masked(step, STEPS, tokens, masked)
        found.append((masked, left))
        masked = left
    return found


# ---- measuring ----------------------------------------------------------------------------------------
def clocked(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """CPU seconds of the process, and the result."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


@cache
def build(resolution: int) -> HarmonModel:
    """Harmon-0.5B's sizes with four layers in language model, encoder and decoder; small random weights."""
    torch.manual_seed(0)
    mar = MarConfig(encoder_depth=LAYERS, decoder_depth=LAYERS)
    llm = {**QWEN2_5, "num_hidden_layers": LAYERS}
    model = HarmonModel(HarmonConfig(llm=llm, mar=mar, resolution=resolution)).eval()
    for part in model.network.mar.diffloss.net.modulated:
        torch.nn.init.normal_(part.modulator.weight, std=0.02)
    torch.nn.init.normal_(model.network.mar.diffloss.net.final_layer.linear.weight, std=1e-3)
    return model


def sides(model: HarmonModel, texts: Sequence[list[int]]) -> tuple[list[Direct], Drawing]:
    """Both loops with their prompts already run."""
    loops = []
    for text in texts:
        rows = layouts.prompts([text, UNCONDITIONAL], model.config.end)
        loops.append(Direct(model.network, model.config.grid, rows.ids, rows.mask))
    drawing = model.drawing(Condition(texts), Condition([UNCONDITIONAL] * len(texts)))
    return loops, drawing


class Dispatched(TorchDispatchMode):
    """Counts operations that compute; views only describe."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(model: HarmonModel, texts: Sequence[list[int]]) -> dict[str, int]:
    """Operations of one step of either side; every step has the same, whatever it draws."""
    loops, drawing = sides(model, texts)
    step, found = Step(1, model, texts), {}
    for side, call in (
        ("direct", lambda: step.direct(loops)),
        ("ours", lambda: step.ours(drawing)),
    ):
        with Dispatched() as counter:
            call()
        found[side] = counter.count
    return found


def measure_steps(
    model: HarmonModel, texts: Sequence[list[int]], numbers: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Both sides on the chosen steps, alternating; the latents must agree."""
    loops, drawing = sides(model, texts)
    found = []
    for number in numbers:
        step = Step(number, model, texts)
        times: dict[str, list[float]] = {"direct": [], "ours": []}
        for _ in range(repeats):
            seconds, expected = clocked(partial(step.direct, loops))
            times["direct"].append(seconds)
            seconds, drawn = clocked(partial(step.ours, drawing))
            times["ours"].append(seconds)
        error = ((drawn - expected).abs().max() / expected.abs().max()).item()
        assert error < 1e-3, f"step {number}: the two sides differ by {error:.1e}"
        entry = {"step": number, "tokens": step.before - step.left, "relative_difference": error}
        found.append(entry | {f"{side}_seconds": median(t) for side, t in times.items()})
        print(json.dumps(found[-1]), flush=True)
    return found


def measure_decoder(model: HarmonModel, pictures: int) -> dict[str, float]:
    """The VAE's decode of both halves of one picture, and of the picture alone, times the pictures."""
    rows, columns = model.config.grid
    latents = torch.randn(2, rows, columns, model.config.mar.latent_channels)
    direct, _ = clocked(lambda: model.frozen.decode(latents))
    ours, _ = clocked(lambda: model.frozen.decode(latents[:1]))
    return {"direct_seconds": direct * pictures, "ours_seconds": ours * pictures}


def whole_loop(steps: Sequence[dict[str, Any]], decoder: dict[str, float], side: str) -> float:
    """Seconds of all 64 steps by the trapezoid rule over those measured, and the decoder."""
    points = [(one["step"], one[f"{side}_seconds"]) for one in steps]
    total = points[0][1]
    for (left, before), (right, behind) in pairwise(points):
        total += (right - left) * (before + behind) / 2 + (behind - before) / 2
    return total + decoder[f"{side}_seconds"]


def measured(resolution: int, pictures: int, points: int, repeats: int) -> dict[str, Any]:
    """One setting: steps, decoder, operations, and the whole loop by both sides."""
    model = build(resolution)
    texts = [list(range(100 + 40 * n, 115 + 41 * n)) for n in range(pictures)]
    numbers = sorted({round(i * (STEPS - 1) / (points - 1)) for i in range(points)})
    counted = operations(model, texts)
    steps = measure_steps(model, texts, numbers, repeats)
    decoder = measure_decoder(model, pictures)
    whole = {side: whole_loop(steps, decoder, side) for side in ("direct", "ours")}
    return {
        "resolution": resolution,
        "pictures": pictures,
        "repeats": repeats,
        "operations_per_step": counted,
        "measured_steps": steps,
        "decoder": decoder,
        "whole_loop_seconds": whole,
        "speedup": whole["direct"] / whole["ours"],
    }


def main() -> None:
    """Measure all settings and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["512x1", "256x1", "256x4"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=8, help="steps of the schedule to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    result = {
        "what": __doc__.split("\n")[0],
        "sizes": f"Harmon-0.5B with {LAYERS} layers in each tower, fp32, {STEPS} steps, guidance {GUIDANCE}",
        "machine": {"processor": processor(), "system": platform.system(), "threads": 1},
        "versions": versions(),
        "clock": "CPU seconds of the process, medians of alternating repeats",
        "settings": found,
    }
    for setting in given.settings:
        resolution, pictures = map(int, setting.split("x"))
        with torch.no_grad():
            found.append(measured(resolution, pictures, given.points, given.repeats))
        print(f"{setting}: {found[-1]['speedup']:.2f} times as fast", flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """The processor's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
