"""A client's job, for whoever looks at processes by their parents: it is not below the shell that waits for it."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from reca.worker.client import CLIENT_NAME


def with_jobs(found: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and, for each that waits for a job in a worker, the job and all below it."""
    every = list(found)
    for process in tuple(every):
        try:
            name = process.name()
            if name.startswith(CLIENT_NAME):
                job = psutil.Process(int(name.removeprefix(CLIENT_NAME)))
                every += [job, *job.children(recursive=True)]
        except (psutil.Error, ValueError):
            continue  # gone already, or another program of such a name
    return every


class Tree(psutil.Process):
    """A process whose children are those below it, and the jobs that it and they wait for."""

    def children(self, recursive: bool = False) -> list[psutil.Process]:
        """As psutil's, with jobs."""
        below = super().children(recursive)
        return with_jobs([psutil.Process(self.pid), *below])[1:]


def count_in_benchmarks() -> bool:
    """Make Snakemake's `benchmark:` files count a job in a worker as if it ran below its shell.

    False with a Snakemake that measures otherwise, whose files would show the client alone.
    """
    from snakemake import benchmark

    if not hasattr(benchmark, "BenchmarkTimer"):
        return False

    class Timer(benchmark.BenchmarkTimer):
        def __init__(self, pid: int, *arguments: object) -> None:
            super().__init__(pid, *arguments)
            self.main = Tree(pid)

    benchmark.BenchmarkTimer = Timer
    return True
