"""File operations that fail or kill the process at the n-th of them: every point at which a write can end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Points = Sequence[tuple[Any, str]]
"""(owner, name) of the functions that count as file operations."""

CUT = -signal.SIGKILL  # exit code of a child that was killed at its point


def tamper(
    points: Points, fail_at: int, after: bool, fail: Callable[[], None], patch: Callable = setattr
) -> list[str]:
    """Let the n-th file operation fail, before or after its effect; gives the list of operations done."""
    done: list[str] = []

    def wrap(original: Callable, name: str) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            done.append(name)
            failing = len(done) == fail_at
            if failing and not after:
                fail()
            result = original(*args, **options)
            if failing:
                fail()
            return result

        return call

    for owner, name in points:
        patch(owner, name, wrap(getattr(owner, name), name))
    return done


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(points: Points, fail_at: int, after: bool, work: Callable[[], Any]) -> int:
    """Work in a child that is killed at the n-th file operation; its exit code, 0 if it came through."""
    child = os.fork()
    if child == 0:
        try:
            tamper(points, fail_at, after, kill_self)
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_points(
    points: Points, work: Callable[[str], Any], every: int = 1
) -> Iterator[tuple[str, int]]:
    """(name, exit code) of work killed before and after each file operation, until it comes through.

    `work` gets a name that is its own, for instance for a folder; `every` leaves operations out.
    """
    for after in (False, True):
        for number in range(1, 200, every):
            name = f"{number}-{'after' if after else 'before'}"
            code = killed_at(points, number, after, lambda name=name: work(name))
            yield name, code
            if code != CUT:
                break
