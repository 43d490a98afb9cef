"""The training loop of image tokenizers and vision encoders: one loss, one module, bitwise exact resume.

The language model is trained by `reca.align.trainer`, like every alignment.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from reca.align import checkpoint
from reca.align.distributed import ProcessGroup
from reca.align.log import LOG, TrainLog, losses_at
from reca.align.preemption import Preempted, StopFlag
from reca.align.schedule import lr_factor
from reca.align.state import TrainState
from reca.core.finite import check_weights
from reca.core.rng import seed_of
from reca.data.order import Cursor

if TYPE_CHECKING:
    from reca.config.schema import Fit

CHECKPOINTS = "checkpoints"
logger = logging.getLogger(__name__)


def seeded(build: Callable[[], nn.Module], seed: int, purpose: str) -> nn.Module:
    """Build a module with initial weights keyed by (seed, purpose); torch's global generator is
    restored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "init", purpose))
        return build()


def fit(
    module: nn.Module,
    loss: Callable[[Sequence[int]], Tensor],
    recipe: Fit,
    *,
    size: int,
    seed: int,
    work_dir: Path,
    data: str,
) -> float:
    """Minimise `loss(sample indices)` over `module` and return the last loss; resumes from `work_dir`.

    `size` is the number of samples and `data` their hash: resuming with other data or another recipe is an error.
    ValueError for a loss or gradient that is not finite; checkpoints of earlier steps are kept.
    """
    processes = ProcessGroup()
    names = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        names.values(),
        lr=recipe.lr,
        betas=(recipe.betas[0], recipe.betas[1]),
        weight_decay=recipe.weight_decay,
    )
    state = TrainState(names, optimizer, None)
    described = {
        name: value for name, value in asdict(recipe).items() if name != "checkpoint_every"
    }
    record = {"seed": seed, "recipe": described, "data": data}
    folder, value = work_dir / CHECKPOINTS, math.nan
    with checkpoint.exclusive(work_dir):
        start = _resume(folder, state, record)
        with StopFlag() as stop, TrainLog(work_dir, start=start, steps=recipe.steps) as journal:
            for step in range(start, recipe.steps):
                rate = recipe.lr * lr_factor(
                    step, warmup=recipe.warmup, horizon=recipe.steps, floor=recipe.floor
                )
                indices, _ = Cursor(seed, step * recipe.batch).take(size, recipe.batch)
                value, norm = _step(optimizer, loss(indices), rate, recipe.clip)
                line = {"step": step + 1, "loss": {"total": value}, "lr": rate, "grad_norm": norm}
                journal.write(line, recipe.batch)
                due = (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps
                if due or stop.received:
                    check_weights(f"{work_dir}, step {step + 1}", names.items())
                    journal.sync()
                    saved = {"run": record, "tally": asdict(state.tally)}
                    checkpoint.save(
                        folder, step + 1, state.groups(), saved, keep=2, processes=processes
                    )
                if stop.received and step + 1 < recipe.steps:
                    stopped = Preempted(step + 1, stop.received)
                    logger.warning("%s", stopped)
                    raise stopped
    if (
        start == recipe.steps
    ):  # killed after its last step: nothing to train, and still a loss to report
        recorded = losses_at(work_dir / LOG, start)["total"]
        assert recorded is not None  # `_step` refuses a loss that is not finite
        return recorded
    return value


def _step(
    optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float
) -> tuple[float, float]:
    """One optimizer step on a scalar loss []; returns the loss and the gradient norm."""
    value = loss.item()
    if not math.isfinite(value):
        raise ValueError(f"the loss is {value}; lower lr in the pretrain section")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = float(clip_grad_norm_(weights, clip))
    if not math.isfinite(norm):
        raise ValueError(f"the gradient norm is {norm}; lower lr in the pretrain section")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return value, norm


def _resume(folder: Path, state: TrainState, record: dict) -> int:
    found = checkpoint.recover(folder)
    if found.path is None:
        return 0
    saved = checkpoint.read_state(found.path)["run"]
    saved["recipe"].pop("checkpoint_every", None)  # older checkpoints have it
    remedy = f"restore these, or remove {folder.parent} and start again"
    checkpoint.refuse_changes(found.path, saved, record, (), remedy=remedy)
    state.restore(found.path)
    return found.step
