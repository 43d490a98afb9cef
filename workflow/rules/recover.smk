"""After `kill -9` the same command goes on: what the dead run left is found and removed (`reca.core.processes`).

Only where jobs are about to run: a dry run, `--lint`, `--summary`, `--report`, `--unlock` and the like end and remove
nothing. Snakemake has no hook between the choice of what to do and its lock, so its own `execute` is wrapped.
"""

from snakemake.exceptions import LockException

from reca.core import processes

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
        processes.recover()
        with processes.marked():
            try:
                return execute(*arguments, executor_plugin=executor_plugin, **options)
            except LockException:
                sys.exit(f"snakemake: {processes.why_locked()}")

    return run


if workflow.is_main_process:
    workflow.execute = with_mark(workflow.execute)
