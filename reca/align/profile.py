"""Where the time of training steps goes: torch's profiler around the steps that `reca.align.trainer` takes."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from reca.align import distributed, trainer
from reca.align.batches import TaskData, prepared_steps
from reca.align.state import freeze
from reca.config.recipe import Recipe
from reca.core.atomic import replacing
from reca.models.contract import UnifiedModel

WARM_UP = 2  # steps: the first allocates moments, and compiles
MICRO = 1e-6


@dataclass(frozen=True)
class Operation:
    """One operation of torch: how often it ran, and seconds without the operations that it called."""

    name: str
    calls: int
    host: float
    device: float


@dataclass(frozen=True)
class Profile:
    """Seconds of the profiled steps: of the clock, by `trainer.SPANS` and `other`, and by operation."""

    steps: int
    device: torch.device
    seconds: float
    host: dict[str, float]
    on_device: dict[str, float]  # of kernels; empty without a GPU
    operations: list[Operation]  # longest first, by device time if there is any


def profile_steps(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    steps: int,
    trace: Path,
    device: str = "auto",
) -> Profile:
    """Train `model` in place, `WARM_UP` steps and then profiled ones; their Chrome trace is written to `trace`."""
    recipe.validate()
    processes = distributed.join(device)
    parts = trainer.set_up(model, freeze(model, recipe.trains), recipe, processes)
    objective, state, blocks = parts
    on_gpu = processes.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plans = prepared_steps(
        model, data, recipe, range(WARM_UP + steps), seed=seed, processes=processes
    )
    with trainer.wrapped(blocks, recipe), closing(plans):
        for step in range(WARM_UP):
            trainer.take_step(objective, state, plans, recipe, processes, step)
        with profile(activities=activities) as found:
            started = _settled(on_gpu)
            for step in range(WARM_UP, WARM_UP + steps):
                trainer.take_step(objective, state, plans, recipe, processes, step)
            seconds = _settled(on_gpu) - started
    if processes.first:
        with replacing(trace) as unfinished:
            found.export_chrome_trace(str(unfinished))
    return summed(found.key_averages(), steps, seconds, processes.device)


def _settled(on_gpu: bool) -> float:
    """The time in seconds when the device has finished its work."""
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def summed(averages: Any, steps: int, seconds: float, device: torch.device) -> Profile:
    """The profile of the profiler's `key_averages()`.

    On a GPU a kernel is in them twice, by itself and as time of the operation that started it, and a span has an
    annotation there. A backward pass starts its kernels from a thread of autograd, so it has what no other span has.
    """
    on_host = [event for event in averages if event.device_type == DeviceType.CPU]
    spans = {event.key: event for event in on_host if event.key.startswith(trainer.SPAN)}
    events = [event for event in on_host if event.key not in spans]
    host = {
        part: spans[trainer.SPAN + part].cpu_time_total * MICRO
        for part in trainer.SPANS
        if trainer.SPAN + part in spans
    }
    host["other"] = max(0.0, seconds - sum(host.values()))
    on_device: dict[str, float] = {}
    if device.type == "cuda":
        on_device = {
            part: spans[trainer.SPAN + part].device_time_total * MICRO
            for part in host
            if trainer.SPAN + part in spans and part != "backward"
        }
        whole = MICRO * sum(
            event.self_device_time_total
            for event in averages
            if event.device_type != DeviceType.CPU and not event.is_user_annotation
        )
        on_device["backward"] = max(0.0, whole - sum(on_device.values()))
    operations = [
        Operation(
            event.key,
            event.count,
            event.self_cpu_time_total * MICRO,
            event.self_device_time_total * MICRO,
        )
        for event in events
    ]
    operations.sort(key=lambda one: one.device if on_device else one.host, reverse=True)
    return Profile(steps, device, seconds, host, on_device, operations)


def described(found: Profile, top: int = 10) -> list[str]:
    """The lines that are shown: shares of a step, and the operations that take longest by themselves."""
    each = 1e3 / found.steps  # seconds -> milliseconds of a step
    lines = [f"{'part of a step':24} {'ms':>9} {'share':>6}" + _heading(found)]
    for part, seconds in found.host.items():
        line = f"{part:24} {seconds * each:9.2f} {seconds / found.seconds:6.1%}"
        if found.on_device:
            own = found.on_device.get(part, 0.0)
            line += f" {own * each:9.2f} {own / found.seconds:6.1%}"
        lines.append(line)
    lines.append(f"{'step':24} {found.seconds * each:9.2f}")
    lines += ["", f"{'operation':48} {'calls':>7} {'self ms':>9} {'share':>6}" + _heading(found)]
    for one in found.operations[:top]:
        line = f"{one.name[:48]:48} {one.calls / found.steps:7.0f}"
        line += f" {one.host * each:9.2f} {one.host / found.seconds:6.1%}"
        if found.on_device:
            line += f" {one.device * each:9.2f} {one.device / found.seconds:6.1%}"
        lines.append(line)
    return lines


def _heading(found: Profile) -> str:
    return f" {'GPU ms':>9} {'share':>6}" if found.on_device else ""
