"""After `kill -9` the same command goes on: what the dead run left behind is found and removed.

Snakemake unlocks a folder when it ends, but not when it is killed; and the jobs of a killed run live
on, writing where the next run writes. A run therefore leaves a mark with its process id, and its jobs
carry it in their environment. Jobs on the nodes of a cluster are the scheduler's to cancel.
"""

import shutil
import socket

import psutil

MARKS = Path(".snakemake/runs")
MARK = "RECA_RUN"


def own_mark():
    """This process, told apart from any later one with the same id."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time()}"


def is_dead(mark):
    """True where the marked process ran on this machine and has ended."""
    host, pid, created = mark.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return psutil.Process(int(pid)).create_time() != float(created)
    except psutil.NoSuchProcess:
        return True


def end_jobs_of(mark):
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                process.kill()
        except psutil.Error:
            continue  # gone already, or another user's


def begin():
    MARKS.mkdir(parents=True, exist_ok=True)
    MARKS.joinpath(own_mark()).touch()


def end():
    MARKS.joinpath(own_mark()).unlink(missing_ok=True)


def recover():
    """Remove the lock and end the jobs of runs that were killed on this machine."""
    left = [path for path in MARKS.glob("*:*") if is_dead(path.name)]
    for path in left:
        end_jobs_of(path.name)
        path.unlink(missing_ok=True)
    if left and not any(MARKS.glob("*:*")):
        shutil.rmtree(".snakemake/locks", ignore_errors=True)


if workflow.is_main_process:
    recover()
    os.environ.update({MARK: own_mark()})


onstart:
    begin()


onsuccess:
    end()


onerror:
    end()
