"""What lasts as long as a run: its mark, by which what a killed one left is found, and a worker for its jobs.

After `kill -9` the same command goes on: what the dead run left is removed (`reca.core.processes`). Local jobs do not
import their libraries again and again (`reca.worker`; `RECA_WORKER=off` switches it off).

Only where jobs are about to run: a dry run, `--lint`, `--summary`, `--report`, `--unlock` and the like end and remove
nothing. Snakemake has no hook between the choice of what to do and its lock, so its own `execute` is wrapped.
"""

from snakemake.exceptions import LockException

from reca.core import processes
from reca.worker.client import OFF, VARIABLE
from reca.worker.jobs import count_in_benchmarks
from reca.worker.server import shared_worker

# Snakemake's plugins for schedulers and its use of conda put these paths into commands that plain names alone survive.
PLAIN = re.compile(r"[\w./+=@-]+")


def with_mark(execute):
    """`workflow.execute` under a mark of this run, after what killed runs left is gone."""

    def run(*arguments, executor_plugin, **options):
        settings = executor_plugin.common_settings
        if settings.dryrun_exec:
            return execute(*arguments, executor_plugin=executor_plugin, **options)
        software = workflow.deployment_settings.deployment_method
        plain_only = not settings.local_exec or software
        for path in (ROOT, sys.executable) if plain_only else ():
            if not PLAIN.fullmatch(str(path)):
                sys.exit(
                    f"{path}: a scheduler's jobs and conda cannot start from a folder with such a name; rename it"
                )
        if settings.local_exec:
            one_gpu_job_at_a_time()
        processes.recover()
        if not count_in_benchmarks():
            os.environ[VARIABLE] = OFF
        local = settings.local_exec and not settings.touch_exec and not software
        with processes.marked(), shared_worker(local):
            try:
                return execute(*arguments, executor_plugin=executor_plugin, **options)
            except LockException:
                sys.exit(f"snakemake: {processes.why_locked()}")

    return run


if workflow.is_main_process:
    workflow.execute = with_mark(workflow.execute)
