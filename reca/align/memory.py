"""The memory that a run needs on each device, computed on `meta` before any weight is loaded.

Weights, gradients and optimizer are exact; activations are estimated from the family's `MemoryProfile`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from reca.config.recipe import Recipe
    from reca.models.contract import MemoryProfile, UnifiedModel, Use

GIB = 2**30
CACHED_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
FULL = 4  # bytes of a float32: master weights, gradients, moments
RESERVE = 0.06  # share of a device's memory taken by its runtime, fragmentation and buffers
# Values stored per token and layer for the backward pass: norms, projections, attention output and residuals; and in
# the MLP: gate, up, activation, product.
PER_WIDTH, PER_INNER = 14, 4
# Likewise per row and block of a head: shift, scale, gate, norm, inputs and outputs of two layers, autocast's copies.
PER_HEAD = 12
ACTIVATIONS = "activations (estimate)"
SQUARE = 1024  # pixels of the image whose features are counted; families resize it
ON_GPU = 80.0  # GiB assumed for a GPU if this machine has none


@dataclass(frozen=True)
class Footprint:
    """Memory of one device in bytes, by purpose."""

    parameters: int
    trained: int
    gpus: int
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Total bytes on one device."""
        return sum(self.parts.values())


def meta_model(family: str, network: Mapping[str, Any]) -> UnifiedModel:
    """An untrained model on `meta`, which allocates no memory."""
    import torch

    from reca.models.registry import build_model

    with torch.device("meta"):
        return build_model(family, network)


def footprint(model: UnifiedModel, recipe: Recipe, gpus: int, half: bool) -> Footprint:
    """Memory for training `model` by `recipe` on each of `gpus` devices (0: one process on the CPU).

    `half`: activations in bfloat16. Trained weights, gradients and moments are sharded; frozen weights are replicated
    on every device, as in `reca.align.distributed.shard`.
    """
    from reca.align.state import freeze

    ranks = max(1, gpus)
    trained = set(freeze(model, recipe.trains))
    named = dict(model.named_parameters())
    count = sum(named[name].numel() for name in trained)
    frozen = [w for name, w in named.items() if name not in trained]
    parts: dict[str, float] = {
        "frozen weights": sum(w.numel() * w.element_size() for w in [*frozen, *model.buffers()]),
        "trained weights": count * FULL / ranks,
        "gradients": count * FULL / ranks,
        "optimiser (two moments)": 2 * count * FULL / ranks,
    }
    if recipe.ema is not None:
        parts["moving average"] = count * FULL / ranks
    if ranks > 1:
        parts["gathered blocks"] = 2 * _largest_block(model) * FULL
    if half and not recipe.activation_checkpointing:
        parts["weights in bfloat16"] = count * CACHED_BYTES["bf16"]  # whole: of the gathered blocks
    load = model.memory_profile()
    if load is not None:
        parts |= _activations(load, recipe, 2 if half else FULL)
    every = sum(w.numel() for w in named.values())
    return Footprint(every, count, ranks, parts)


def _largest_block(model: nn.Module) -> int:
    from reca.align.distributed import trained_blocks

    sizes = [
        sum(w.numel() for w in block.parameters() if w.requires_grad)
        for block in trained_blocks(model)
    ]
    return max(sizes, default=0)


def _activations(load: MemoryProfile, recipe: Recipe, size: int) -> dict[str, float]:
    """Activations of the largest micro-batch; with checkpointing those of one layer and the inputs of the others.

    A head runs last and is freed before the first layer is recomputed, so only the larger of the two counts. Its ends
    (embeddings, final layer) store as much as a block and are not recomputed.
    """
    batch = max(task.batch for task in recipe.active().values())
    layer = batch * load.tokens * (PER_WIDTH * load.width + PER_INNER * load.inner) * size
    kept = batch * load.tokens * load.width * FULL
    rows = batch * load.head_rows
    if recipe.activation_checkpointing:
        values = rows * (load.head_layers + PER_HEAD) + min(rows, load.head_slice) * PER_HEAD
        peak = load.layers * kept + max(layer, values * load.head_width * size)
    else:
        values = rows * (load.head_layers + 1) * PER_HEAD
        peak = load.layers * layer + values * load.head_width * size
    parts = {ACTIVATIONS: float(peak)}
    if load.prefix_tokens:
        values = batch * load.prefix_tokens * load.layers * load.kept_width
        parts["cached keys and values"] = float(values * size)
    return parts


def cached_bytes(model: UnifiedModel, use: Use, cache_dtype: str) -> int:
    """Bytes of one square image in the feature cache: the shapes of its features on `meta`."""
    from PIL import Image

    features = model.encode([Image.new("RGB", (SQUARE, SQUARE))], use)
    half = CACHED_BYTES[cache_dtype]
    return sum(
        rows.numel() * (half if rows.is_floating_point() else rows.element_size())
        for rows in features.values()
    )


# ---- devices -----------------------------------------------------------------------------------
def device_bytes(gpus: int) -> tuple[float, str]:
    """Memory of one device and its description: this machine's GPU, an assumed one, or this machine's memory."""
    import torch

    if gpus and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return float(gpu.total_memory), gpu.name
    if gpus:
        return ON_GPU * GIB, f"a GPU of {ON_GPU:g} GiB (assumed; this machine has none)"
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "this machine's memory"


def fits(footprint: Footprint, memory: float) -> bool:
    """Whether the run fits in memory, including the device's reserve."""
    return footprint.total <= memory * (1 - RESERVE)


def least_gpus(model: UnifiedModel, recipe: Recipe, memory: float, half: bool) -> int | None:
    """The smallest number of GPUs, at most 64, that the run fits on; None if there is none."""
    for gpus in (1, 2, 4, 6, 8, 16, 32, 64):
        if fits(footprint(model, recipe, gpus, half), memory):
            return gpus
    return None


def described(name: str, footprint: Footprint, memory: float, device: str) -> list[str]:
    """The table that `reca plan` prints."""
    places = f"each of {footprint.gpus} devices" if footprint.gpus > 1 else "one device"
    rows = [f"    {what:<30}{_gib(value)}" for what, value in footprint.parts.items()]
    verdict = "fits" if fits(footprint, memory) else "DOES NOT FIT"
    if ACTIVATIONS not in footprint.parts:  # the family has no memory_profile
        rows.append(f"    {'activations':<30}not known")
        verdict += " without activations"
    return [
        f"  models.{name}: {footprint.parameters:,} parameters, {footprint.trained:,} trained; on {places}:",
        *rows,
        f"    {'sum':<30}{_gib(footprint.total)}   of {_gib(memory).strip()} on {device}: {verdict}",
    ]


def remedy(model: UnifiedModel, recipe: Recipe, memory: float, half: bool) -> str:
    """What to change if a run does not fit."""
    gpus = least_gpus(model, recipe, memory, half)
    remedies = [f"{gpus} such GPUs would be enough (resources.gpus)"] if gpus else []
    if not recipe.activation_checkpointing:
        remedies.append("align.activation_checkpointing=true")
    remedies.append("a smaller align.tasks.*.batch with more align.accumulation")
    return "; ".join(remedies)


def _gib(value: float) -> str:
    return f"{value / GIB:9.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:9.2f} MiB"
