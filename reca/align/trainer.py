"""The training loop of all families and arms; start reading at `align`.

    summary = align(model, data, recipe, seed=0, work_dir=Path("work/reca-0"))
    torchrun --nproc_per_node 8 -m reca align ...        # the same call, sharded over eight GPUs

A second call with the same arguments resumes from the newest checkpoint, bit for bit (fp32, same world size).
SIGTERM, SIGUSR1 or SIGUSR2 stop it after the current step with a checkpoint and exit code 75; Ctrl-C with code 130.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from reca.align import checkpoint, distributed
from reca.align.batches import TaskData, on_device, prepared_steps
from reca.align.distributed import ProcessGroup
from reca.align.log import LOG, TrainLog, losses_at, publish
from reca.align.objective import MicroBatch, Objective
from reca.align.preemption import Preempted, StopFlag
from reca.align.schedule import learning_rate
from reca.align.state import TrainState, build_state, freeze, weights_hash
from reca.config.recipe import Recipe
from reca.core.artifacts import versions
from reca.models.contract import UnifiedModel

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
HOUSEKEEPING = ("checkpoint_every", "keep", "tensorboard", "nonfinite", "nonfinite_limit")
"""Recipe fields that change no finished step, so that a run goes on with other ones."""
NEWER: dict[str, Any] = {"compile": False, "ablation": None}
"""Recipe fields that came later, with the value that changes nothing."""
SPANS = ("data", "forward", "backward", "optimizer")
"""The parts of a step, under which a profiler finds its operations (`reca profile`)."""
SPAN = "reca/"  # begins the names of these parts in a trace


class NonFiniteLoss(ValueError):
    """A loss or gradient norm was not finite; the step was discarded. Carries step, task and sample indices."""

    def __init__(self, step: int, task: str, samples: Sequence[int], what: str) -> None:
        super().__init__(
            f"step {step}, task {task}: {what} (samples {list(samples)} of this rank); weights and checkpoints "
            "are those of the previous step. Inspect these samples. To continue this run, set align.nonfinite=skip; or "
            "change align.lr or align.clip and pass --allow recipe.lr or --allow recipe.clip to `reca align`"
        )
        self.step, self.task, self.samples = step, task, list(samples)


@dataclass(frozen=True)
class Summary:
    """Summary of a run; the model passed in holds the result (the moving average if the recipe has one)."""

    steps: int
    resumed_from: int
    tokens: int
    samples: int
    skipped: int
    loss: dict[str, float | None]  # of the last step, in whichever session; None: not finite
    seconds: float  # of this session
    checkpoint: Path
    allowed: Sequence[str] = ()  # what changed when a session resumed, by `allow`


def align(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    work_dir: str | Path,
    log: str | Path | None = None,
    device: str = "auto",
    identity: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    stop_at: int | None = None,
) -> Summary:
    """Train `model` in place by `recipe`, resuming from the newest checkpoint in `work_dir` if there is one.

    `work_dir` holds checkpoints and logs; the complete step log is copied to `log` at the end. `identity` adds
    hashes that must match on resume (pass `model` to avoid hashing all weights); `allow` names dotted fields of
    it that may differ. `stop_at` ends this session early, as a time limit would, with a checkpoint.
    """
    recipe.validate()
    started, work_dir = time.monotonic(), Path(work_dir)
    processes = distributed.join(device)
    with checkpoint.exclusive(work_dir) if processes.first else nullcontext():
        names = freeze(model, recipe.trains)
        record = run_identity(model, data, recipe, seed=seed, processes=processes, given=identity)
        objective, state, blocks = set_up(model, names, recipe, processes)
        start, allowed = resume(work_dir / CHECKPOINTS, state, record, allow, processes)
        facts = {"run": record, "versions": versions(), "allowed": allowed}
        end = recipe.steps if stop_at is None else max(start, min(stop_at, recipe.steps))
        saved, reached = work_dir / CHECKPOINTS / f"step-{start:010d}", {}
        if processes.first and start < end:
            saves = sum(is_due(step, recipe, end) for step in range(start + 1, end + 1))
            size = state.checkpoint_bytes()
            checkpoint.check_room(work_dir / CHECKPOINTS, size, saves=saves, keep=recipe.keep)
        with (
            StopFlag() as stop,
            wrapped(blocks, recipe),
            TrainLog(
                work_dir,
                start=start,
                steps=recipe.steps,
                enabled=processes.first,
                tensorboard=recipe.tensorboard,
            ) as journal,
            closing(
                prepared_steps(
                    model, data, recipe, range(start, end), seed=seed, processes=processes
                )
            ) as plans,
        ):
            for step in range(start, end):
                line = take_step(objective, state, plans, recipe, processes, step)
                reached = line["loss"]
                journal.write(line, sum(line["tokens"].values()))

                stopping = bool(processes.sum([stop.received is not None])[0])
                if stopping or is_due(step + 1, recipe, end):
                    journal.sync()
                    saved = save(work_dir / CHECKPOINTS, step + 1, state, facts, recipe, processes)
                if stopping and step + 1 < recipe.steps:
                    stopped = Preempted(step + 1, stop.received or "a signal to another rank")
                    logger.warning("%s", stopped)
                    raise stopped
        if end == recipe.steps:
            state.adopt_average()
            if log is not None and processes.first:
                publish(work_dir / LOG, recipe.steps, log)
    if start == end and processes.first:  # an earlier session took the last step
        reached = losses_at(work_dir / LOG, end)
    return Summary(
        steps=end,
        resumed_from=start,
        **asdict(state.tally),
        loss=reached,
        seconds=time.monotonic() - started,
        checkpoint=saved,
        allowed=allowed,
    )


# ---- before the loop ---------------------------------------------------------------------------
def run_identity(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    processes: ProcessGroup,
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that must match between two sessions for the second to resume the first."""
    section = {name: value for name, value in asdict(recipe).items() if name not in HOUSEKEEPING}
    for name, default in NEWER.items():  # runs that began before these fields existed go on
        if section[name] == default:
            del section[name]
    facts = {
        "seed": seed,
        "ranks": processes.size,
        "device": processes.device.type,
        "recipe": section,
    }
    facts["data"] = data.fingerprint()
    given = dict(given or {})
    facts["model"] = given.pop("model", None) or weights_hash(model)
    return facts | ({"given": given} if given else {})


def set_up(
    model: UnifiedModel, names: list[str], recipe: Recipe, processes: ProcessGroup
) -> tuple[Objective, TrainState, list[torch.nn.Module]]:
    """Place, shard and wrap the model, then build the optimizer over its parameters."""
    # Losses are pure functions of their arguments: dropout would add random numbers that are not keyed.
    model.eval()
    objective, blocks = Objective(model), distributed.trained_blocks(model)
    distributed.shard(objective, blocks, processes)
    return objective, build_state(model, names, recipe), blocks


def resume(
    folder: Path,
    state: TrainState,
    record: Mapping[str, Any],
    allow: Sequence[str],
    processes: ProcessGroup,
) -> tuple[int, list[str]]:
    """Restore the newest valid checkpoint: its step, 0 if there is none, and the changes that `allow` permitted."""
    found = checkpoint.recover(folder) if processes.first else None
    step = processes.from_first(found.step if found else 0)
    if not step:
        return 0, []
    path = folder / f"step-{step:010d}"
    facts = checkpoint.read_state(path)
    saved = facts["run"]
    for name in HOUSEKEEPING:  # older checkpoints have some of them
        saved["recipe"].pop(name, None)
    remedy = f"restore these, or remove {folder.parent} and start again"
    remedy += ", or resume anyway with `reca align --allow FIELD`"
    changed = checkpoint.refuse_changes(path, saved, record, allow, remedy=remedy)
    if step > record["recipe"]["steps"]:
        raise ValueError(
            f"{path}: is beyond align.steps = {record['recipe']['steps']}, so its weights are not those of that many "
            f"steps; remove {folder.parent} and start again"
        )
    state.restore(path)
    return step, sorted({*facts.get("allowed", ()), *changed})


def is_due(step: int, recipe: Recipe, end: int) -> bool:
    """Whether to save a checkpoint after `step` steps: at the interval of the recipe, and at the end."""
    return step == end or bool(recipe.checkpoint_every and step % recipe.checkpoint_every == 0)


# ---- one step ----------------------------------------------------------------------------------
def take_step(
    objective: Objective,
    state: TrainState,
    plans: Iterator[list[MicroBatch]],
    recipe: Recipe,
    processes: ProcessGroup,
    step: int,
) -> dict[str, Any]:
    """Optimizer step `step` (0-based) on the next of `plans`; returns its line of the log.

    The host waits for the device once, for the norm and the losses: they decide whether the weights change. With
    several ranks it waits for their sums of tokens as well.
    """
    with span("data"):
        plan = next(plans)
    counts = tokens_by_task(plan, recipe, processes)
    totals = backward(objective, plan, counts, recipe, processes)
    with span("optimizer"):
        norm = gradient_norm(state)
        losses = mean_losses(plan, totals, counts, recipe, processes)
        rate = learning_rate(recipe, step)
        finite = all(map(math.isfinite, [*losses.values(), norm]))
        if finite:
            update(state, rate, norm, recipe)
        else:
            skip_or_raise(step + 1, plan, totals, state, recipe)
        state.optimizer.zero_grad(set_to_none=True)
    state.tally.tokens += sum(counts.values())
    state.tally.samples += processes.size * sum(len(batch.indices) for batch in plan)
    return describe(step + 1, losses, norm, rate, counts, finite)


def wrapped(blocks: Sequence[torch.nn.Module], recipe: Recipe) -> AbstractContextManager[None]:
    """Context in which the trained blocks run as the recipe says: recomputed, compiled or both."""
    return distributed.wrapped(
        blocks, recompute=recipe.activation_checkpointing, compiled=recipe.compile
    )


def span(part: str) -> record_function:
    """A context whose operations a profiler attributes to one of `SPANS`."""
    assert part in SPANS
    return record_function(SPAN + part)


def tokens_by_task(
    plan: Sequence[MicroBatch], recipe: Recipe, processes: ProcessGroup
) -> dict[str, int]:
    """Number of tokens with a loss in this optimizer step, over all micro-batches and ranks, by task."""
    own = [sum(batch.count for batch in plan if batch.task == task) for task in recipe.active()]
    return dict(zip(recipe.active(), map(int, processes.sum(own)), strict=True))


def backward(
    objective: Objective,
    plan: Sequence[MicroBatch],
    counts: Mapping[str, int],
    recipe: Recipe,
    processes: ProcessGroup,
) -> list[Tensor]:
    """Accumulate the gradient of sum over tasks of lambda * (sum over tokens) / (tokens of the step).

    Returns the loss sum of each micro-batch. Sharding averages gradients over ranks, hence the factor. ValueError if a
    loss depends on no trained weight.
    """
    totals = []
    for batch in plan:
        with span("data"):
            placed = on_device(batch, processes.device)
        with span("forward"), autocast(recipe, processes.device):
            total = objective(placed)
        if not total.requires_grad:
            raise ValueError(
                f"align.trains = {list(recipe.trains)}: the loss of {batch.task} depends on none of these weights; "
                "add some of its path (what is cached as features has no gradient), or leave the task out"
            )
        share = recipe.tasks[batch.task].weight * processes.size / max(counts[batch.task], 1)
        with span("backward"):
            (total * share).backward()
        totals.append(total.detach())
    return totals


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """bf16 autocast, if the recipe sets it or (auto) if the GPU supports it; weights stay fp32.

    Without checkpointing the backward pass needs every weight in bf16, so each is cast once and cached. With it a
    block casts its weights again anyway, and cached copies of all of them (4.7 GiB for Harmon-1.5B) would be useless.
    """
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = recipe.precision == "bf16" or (recipe.precision == "auto" and capable)
    keep = not recipe.activation_checkpointing
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=keep)


def gradient_norm(state: TrainState) -> float:
    """Global 2-norm of the gradient, before clipping."""
    return norm_of([weight.grad for weight in state.weights.values() if weight.grad is not None])


def norm_of(tensors: Sequence[Tensor]) -> float:
    """Global 2-norm of tensors, possibly sharded."""
    norm = get_total_norm(tensors)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def mean_losses(
    plan: Sequence[MicroBatch],
    totals: Sequence[Tensor],
    counts: Mapping[str, int],
    recipe: Recipe,
    processes: ProcessGroup,
) -> dict[str, float]:
    """Each task's loss per token over the entire step, not weighted by lambda."""
    own = dict.fromkeys(recipe.active(), 0.0)
    for batch, total in zip(plan, torch.stack(list(totals)).tolist(), strict=True):
        own[batch.task] += total
    summed = processes.sum(list(own.values()))
    return {task: value / max(counts[task], 1) for task, value in zip(own, summed, strict=True)}


def update(state: TrainState, rate: float, norm: float, recipe: Recipe) -> None:
    """Clip, one AdamW step at learning rate `rate`, and the moving average."""
    if recipe.clip is not None:
        clip(state, norm, recipe.clip)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    if recipe.ema is not None:
        state.update_average(recipe.ema)


def clip(state: TrainState, norm: float, most: float) -> None:
    """Scale the gradient down to a norm of `most` (the formula of torch's `clip_grad_norm_`)."""
    factor = min(1.0, most / (norm + 1e-6))
    for weight in state.weights.values():
        if weight.grad is not None:
            weight.grad.mul_(factor)


def skip_or_raise(
    step: int,
    plan: Sequence[MicroBatch],
    totals: Sequence[Tensor],
    state: TrainState,
    recipe: Recipe,
) -> None:
    """Count a step that is not finite, or raise NonFiniteLoss with its samples."""
    state.tally.skipped += 1
    if recipe.nonfinite == "skip" and state.tally.skipped <= recipe.nonfinite_limit:
        return
    for batch, total in zip(plan, totals, strict=True):
        if not torch.isfinite(total):
            raise NonFiniteLoss(step, batch.task, batch.indices, f"the loss is {float(total)}")
    samples = [index for batch in plan for index in batch.indices]
    raise NonFiniteLoss(step, "/".join(recipe.active()), samples, "the gradient is not finite")


# ---- records -----------------------------------------------------------------------------------
def describe(
    step: int,
    losses: Mapping[str, float],
    norm: float,
    rate: float,
    counts: Mapping[str, int],
    finite: bool,
) -> dict[str, Any]:
    """One line of `log.jsonl`, without times or machine facts; a skipped step is marked."""
    line = {
        "step": step,
        "loss": finite_or_none(losses),
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": dict(counts),
    }
    return line if finite else {**line, "skipped": True}


def finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity with None, which JSON can represent."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def save(
    folder: Path,
    step: int,
    state: TrainState,
    facts: Mapping[str, Any],
    recipe: Recipe,
    processes: ProcessGroup,
) -> Path:
    """Write the checkpoint of a completed step, unless its weights are not finite."""
    if not math.isfinite(norm_of(list(state.weights.values()))):
        raise ValueError(
            f"step {step}: the weights are not finite after this step; checkpoints are those of earlier steps. "
            f"Lower align.lr or set align.clip, remove {folder.parent} and run the same command"
        )
    described = {**facts, "tally": asdict(state.tally)}
    return checkpoint.save(
        folder, step, state.groups(), described, keep=recipe.keep, processes=processes
    )
