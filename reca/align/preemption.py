"""Preemption: a scheduler's signal, or Ctrl-C, stops the run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to resume
INTERRUPTED_EXIT_CODE = (
    130  # a shell's code for Ctrl-C: a person stopped the run, so it is not restarted
)


class Preempted(SystemExit):
    """The run was stopped by a signal after saving step `step`; a SystemExit with code 75, or 130 after Ctrl-C."""

    def __init__(self, step: int, signal_name: str) -> None:
        interrupted = signal_name == signal.SIGINT.name
        super().__init__(INTERRUPTED_EXIT_CODE if interrupted else REQUEUE_EXIT_CODE)
        self.step, self.signal_name = step, signal_name

    def __str__(self) -> str:
        return (
            f"stopped by {self.signal_name} after step {self.step}; run the same command to resume"
        )


class StopFlag:
    """Context in which SIGTERM, SIGUSR1, SIGUSR2 and SIGINT only set a flag; further signals have no effect.

    Outside the main thread, where Python allows no handlers, the flag is never set.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._set) for number in STOP_SIGNALS}
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
