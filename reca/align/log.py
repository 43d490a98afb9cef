"""The step log of a run: `log.jsonl` with one line per step, byte-identical whether or not the run was interrupted.

Times differ between runs, so they go to `timing.jsonl` next to it. Every line is sealed (`reca.core.sealed`): training
neither resumes from nor publishes a step whose line is damaged on disk.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reca.core.atomic import write_atomic
from reca.core.sealed import seal, unseal, unsealed

logger = logging.getLogger(__name__)

LOG, TIMING = "log.jsonl", "timing.jsonl"
KEYS = (
    "step",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "skipped",
)  # the warning about lines without a seal is logged once
SECONDS_BETWEEN_LINES = 10.0


class TrainLog:
    """Appends a line per step and shows progress (a bar on a terminal, otherwise an occasional line).

    On resume both files are truncated to the checkpoint's step. Ranks other than 0 write nothing.
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
        """Append one step; `record` must be a pure function of the run, `tokens` is used for the throughput."""
        if not self.enabled:
            return
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.log.write(seal(record) + "\n")
        self.log.flush()
        timing = {"step": record["step"], "seconds": seconds, "tokens_per_second": tokens / seconds}
        self.timing.write(seal(timing) + "\n")
        self.timing.flush()
        self._show(record, now)
        self._plot(record)

    def _show(self, record: Mapping[str, Any], now: float) -> None:
        shown = {name: math.nan if v is None else v for name, v in record["loss"].items()}
        losses = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
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
            if value is not None:
                self.writer.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Flush the lines to disk; called before a checkpoint, which relies on them."""
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
    """Keep the lines of steps 1..`step`; later lines, or a truncated last one, belong to steps that are repeated.

    With `complete`, ValueError if one of these steps is missing or its line is damaged.
    """
    write_atomic(path, _joined(_checked(path, step) if complete else _lines(path, step)))


def publish(log: Path, steps: int, target: str | Path) -> None:
    """Copy the lines of steps 1..`steps` to `target`; ValueError names a line that is missing or damaged."""
    write_atomic(target, _joined(_checked(log, steps)))


def losses_at(log: Path, step: int) -> dict[str, float | None]:
    """The losses that a step log has for `step` (counted from 1); empty for step 0."""
    if step == 0:
        return {}
    record = json.loads(_checked(log, step)[-1])
    return dict(record["loss"])


def _checked(path: Path, step: int) -> list[bytes]:
    kept = _lines(path, step)
    if len(kept) < step:
        number = len(kept) + 1
        present = path.exists() and len(path.read_bytes().split(b"\n")) > number
        fault = "damaged" if present else f"no line for step {number}"
        raise ValueError(
            f"{path}, line {number}: {fault}, though a checkpoint of step {step} exists; restore the "
            "log, or delete the working folder to start over"
        )
    return kept


def _lines(path: Path, step: int) -> list[bytes]:
    """The lines of steps 1, 2, ... up to `step`, or up to the first that is missing or damaged."""
    kept: list[bytes] = []
    older = 0
    for line in (path.read_bytes() if path.exists() else b"").split(b"\n")[:step]:
        record = unseal(line)
        if record is None and (record := unsealed(line, KEYS)) is not None:
            older += 1
        if record is None or record.get("step") != len(kept) + 1:
            break
        kept.append(line)
    if older:
        logger.warning(
            "%s: %d lines from an older version have no checksum; damage to them cannot be detected",
            path,
            older,
        )
    return kept


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
