"""The record of a run: `log.jsonl` with one line per step, the same bytes whether or not the run was interrupted.

Times differ from run to run, so they go to `timing.jsonl` beside it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reca.records import write_atomic

logger = logging.getLogger(__name__)

LOG, TIMING = "log.jsonl", "timing.jsonl"
SECONDS_BETWEEN_LINES = 10.0


class TrainLog:
    """Appends a line per step, shows progress (a bar on a terminal, else a plain line now and then).

    On resume both files are cut back to the checkpoint's step. Ranks other than 0 write nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        steps: int,
        enabled: bool = True,
        tensorboard: bool = False,
    ) -> None:
        self.enabled, self.steps = enabled, steps
        self.writer: Any = None
        if not enabled:
            return
        truncate(folder / LOG, start, complete=True)
        truncate(folder / TIMING, start, complete=False)
        self.log = open(folder / LOG, "a")  # noqa: SIM115 (closed on exit)
        self.timing = open(folder / TIMING, "a")  # noqa: SIM115
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty())
        self.last = self.shown = time.monotonic()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, record: Mapping[str, Any], tokens: int) -> None:
        """Append one step; `record` must be a pure function of the run, `tokens` gives the throughput."""
        if not self.enabled:
            return
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()
        timing = {"step": record["step"], "seconds": seconds, "tokens_per_second": tokens / seconds}
        self.timing.write(json.dumps(timing) + "\n")
        self.timing.flush()
        self._show(record, now)
        self._plot(record)

    def _show(self, record: Mapping[str, Any], now: float) -> None:
        losses = " ".join(f"{name} {value:.4f}" for name, value in record["loss"].items())
        self.bar.set_postfix_str(losses)
        self.bar.update()
        due = now - self.shown > SECONDS_BETWEEN_LINES or record["step"] == self.steps
        if self.bar.disable and due:
            self.shown = now
            logger.info("step %d/%d  loss %s", record["step"], self.steps, losses)

    def _plot(self, record: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        scalars = {f"loss/{name}": value for name, value in record["loss"].items()}
        scalars |= {name: record[name] for name in ("lr", "grad_norm")}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Make the lines durable; called before a checkpoint, which relies on them."""
        if self.enabled:
            os.fsync(self.log.fileno())

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled:
            self.bar.close()
            self.log.close()
            self.timing.close()
        if self.writer is not None:
            self.writer.close()


def truncate(path: Path, step: int, *, complete: bool) -> None:
    """Keep the lines of steps 1..`step`; later ones, or a torn last one, belong to work that is done again.

    With `complete`, ValueError if one of these steps is missing.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    kept: list[str] = []
    for line in lines:
        if not _is_step(line, len(kept) + 1) or len(kept) == step:
            break
        kept.append(line)
    if complete and len(kept) != step:
        raise ValueError(
            f"{path}: no line for step {len(kept) + 1}, though a checkpoint of step {step} exists; restore the "
            "log, or delete the working folder to start over"
        )
    write_atomic(path, "".join(f"{line}\n" for line in kept))


def _is_step(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] == step
    except (ValueError, KeyError, TypeError):
        return False
