"""Commands in a worker, on a small stand-in for the package: `python -m reca VERB CODE` runs the code."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from reca.worker import client, jobs, server, template
from tests.rehearsal.usage import used

ROOT = Path(__file__).resolve().parents[2]
CLI = """
import json, os, signal, sys, time
AT_START = set(sys.modules)
def main():
    exec(sys.argv[2])
    return 0
"""
IN_WORKER = "print('worker' if 'template.py' in open('/proc/self/cmdline').read().split('\\0')[1] else 'here')"
TEMPLATE = "print(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])"
SAY_AND_WAIT = "print(os.getpid(), flush=True); time.sleep(60)"


class Commands:
    """A folder with the stand-in, and its commands."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        package = folder / "reca"
        (package / "commands").mkdir(parents=True)
        (package / "worker").symlink_to(ROOT / "reca/worker")
        (package / "__init__.py").touch()
        (package / "__main__.py").write_bytes((ROOT / "reca/__main__.py").read_bytes())
        (package / "cli.py").write_text(CLI)
        (package / "commands/__init__.py").touch()
        (package / "commands/exits.py").write_text("WITHOUT_TORCH = {'light'}\n")

    def start(
        self, code: str, *, verb: str = "any", python: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k not in client.ELSEWHERE}
        # numpy's BLAS starts threads where it may use several, and a template with threads does not fork
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder)}
        environment |= {client.VARIABLE: self.name, **variables}
        return subprocess.Popen(
            [sys.executable, *python, "-m", "reca", verb, code], cwd=self.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, code: str, **options: object) -> tuple[int, str, str]:
        process = self.start(code, **options)  # type: ignore[arg-type]
        said, failed = process.communicate("what is asked\n", timeout=60)
        return process.returncode, said.strip(), failed

    def says(self, code: str, **options: object) -> str:
        status, said, failed = self.run(code, **options)
        assert status == 0, failed
        return said


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    with server.serving() as name:
        yield name


@pytest.fixture
def commands(tmp_path: Path, worker: str) -> Commands:
    return Commands(tmp_path / "a folder", worker)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


# ---- a job is like a fresh start -------------------------------------------------------------------
def test_a_job_is_what_a_fresh_start_is(commands: Commands) -> None:
    code = (
        "print(json.dumps([sys.argv, sys.orig_argv, sys.path, sys.flags[:], sys.executable, os.getcwd(),"
        " {k: v for k, v in os.environ.items() if k != 'RECA_WORKER'}, os.umask(0), sys.stdin.read(),"
        " [repr(signal.getsignal(n)) for n in (1, 2, 13, 15, 17)], signal.pthread_sigmask(0, []) == set(),"
        " sys.modules['__main__'].__spec__.name, sys.modules['__main__'].__file__, __import__('gc').isenabled()]))"
    )
    os.umask(mask := os.umask(0o027))
    try:
        alone, inside = (
            commands.says(code, **{client.VARIABLE: n}) for n in ("off", commands.name)
        )
    finally:
        os.umask(mask)
    assert json.loads(inside) == json.loads(alone)
    assert commands.says(IN_WORKER) == "worker"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('such a value')", 1, "ValueError: such a value"),
        ("os.kill(os.getpid(), 9)", 137, ""),
    ],
)
def test_it_ends_as_the_command_does(
    commands: Commands, code: str, status: int, words: str
) -> None:
    ended, said, failed = commands.run(f"print('before', flush=True); {code}")
    assert (ended, said) == (status, "before") and words in failed


def test_an_edited_module_is_seen_by_the_next_job(commands: Commands) -> None:
    assert commands.says("print('old')") == "old"
    # of another length: of an equal one in the same second Python itself takes the old bytecode
    edited = CLI.replace("exec(sys.argv[2])", "print('the new code')")
    (commands.folder / "reca/cli.py").write_text(edited)
    assert commands.says("print('old')") == "the new code"


def test_forks_draw_different_numbers(commands: Commands) -> None:
    code = "import numpy.random, random; print(random.random(), numpy.random.rand())"
    draws = [commands.says(code).split() for _ in range(3)]
    assert len({number for draw in draws for number in draw}) == 6


# ---- templates -------------------------------------------------------------------------------------
def test_later_jobs_find_the_libraries_loaded_but_light_ones_only_their_own(
    commands: Commands,
) -> None:
    loaded = "print('yaml' in AT_START, 'tarfile' in AT_START)"
    commands.says("import yaml")
    commands.says("import tarfile", verb="light")
    assert commands.says(loaded) == "True True"
    assert commands.says(loaded, verb="light") == "False True"


def test_another_environment_has_another_template_and_a_mark_of_a_run_has_not(
    commands: Commands,
) -> None:
    usual = commands.says(TEMPLATE)
    assert commands.says(TEMPLATE, RECA_RUN="one", SHLVL="7") == usual
    assert commands.says(TEMPLATE, HF_HOME="/elsewhere") != usual
    assert commands.says("print(os.environ['RECA_RUN'])", RECA_RUN="two") == "two"


def test_many_environments_leave_few_templates_and_running_jobs_alone(commands: Commands) -> None:
    first = commands.start("time.sleep(3); print('done')", OTHER="first")
    for number in range(server.TEMPLATES + 1):
        assert commands.says(IN_WORKER, OTHER=str(number)) == "worker"
    assert first.communicate(timeout=20)[0] == "done\n"


def test_a_template_with_threads_or_with_reca_or_cuda_forks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template, "OWN", {"reca"})
    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    assert template.unfit() == "a library has imported reca"
    monkeypatch.setattr(template, "OWN", set())
    assert template.unfit() is None
    cuda = type("cuda", (), {"is_initialized": lambda: True, "_is_in_bad_fork": lambda: True})
    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": cuda}))
    assert template.unfit() == template.bad_fork() == "a library has started CUDA"
    monkeypatch.undo()
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
    assert template.unfit() == "a library has started a thread"


def test_only_libraries_are_learned() -> None:
    import yaml

    import reca.core.rng

    learned = [template.is_library(m.__name__, m) for m in (json, yaml, reca.core.rng)]
    assert learned == [True, True, False]


# ---- signals and ends ------------------------------------------------------------------------------
def test_signals_reach_the_job(commands: Commands) -> None:
    handled = "signal.signal(15, lambda *_: sys.exit(5)); " + SAY_AND_WAIT
    for code, number, status in ((SAY_AND_WAIT, 15, 143), (handled, 15, 5), (SAY_AND_WAIT, 1, 129)):
        waiting = commands.start(code)
        assert waiting.stdout and int(waiting.stdout.readline())
        waiting.send_signal(number)
        assert waiting.wait(20) == status


def test_a_job_ends_with_its_client(commands: Commands) -> None:
    waiting = commands.start(SAY_AND_WAIT)
    assert waiting.stdout
    job = int(waiting.stdout.readline())
    assert [p.pid for p in jobs.with_jobs([psutil.Process(waiting.pid)])] == [waiting.pid, job]
    waiting.kill()
    until(lambda: is_gone(job))
    waiting.wait()


def test_everything_ends_with_the_owner(tmp_path: Path) -> None:
    code = "from reca.worker.server import *; import time\nwith serving() as n: print(n, flush=True); time.sleep(60)"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    commands = Commands(tmp_path / "folder", owner.stdout.readline().strip())
    waiting = commands.start(SAY_AND_WAIT)
    assert waiting.stdout
    job = int(waiting.stdout.readline())
    below = [process.pid for process in psutil.Process(owner.pid).children(recursive=True)]
    assert job in below and len(below) == 4  # server, template, supervisor
    owner.kill()
    until(lambda: all(map(is_gone, below)))
    assert waiting.wait(20) == 1
    assert waiting.stderr and client.LOST in waiting.stderr.read()
    owner.wait()
    assert commands.says(IN_WORKER) == "here"


def test_a_killed_template_is_replaced(commands: Commands) -> None:
    killed = psutil.Process(int(commands.says(TEMPLATE)))
    # of a command that ran by itself this is whoever runs the tests
    assert any("template.py" in word for word in killed.cmdline())
    killed.kill()
    until(lambda: is_gone(killed.pid))
    assert commands.says(IN_WORKER) == "worker"


# ---- when it is not used ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {client.VARIABLE: "off"},
        {client.VARIABLE: "nobody-listens"},
        {"SLURM_JOB_ID": "7"},
        {"TORCHELASTIC_RUN_ID": "x"},
        {"python": ("-u",)},
    ],
)
def test_a_command_runs_by_itself(commands: Commands, options: dict[str, str]) -> None:
    assert commands.says(IN_WORKER, **options) == "here"


def test_other_limits_are_not_the_workers(commands: Commands) -> None:
    code = f"nice -n 1 {sys.executable} -m reca any"
    environment = {**os.environ, "PYTHONPATH": str(commands.folder), "RECA_DEBUG": "1"}
    environment[client.VARIABLE] = commands.name
    done = subprocess.run(
        [*code.split(), IN_WORKER], cwd=commands.folder, env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == "here\n" and "reca: not in the worker: limits, priority" in done.stderr


def test_a_socket_of_another_user_is_not_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert client.is_own(one)
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert not client.is_own(one)


def test_a_worker_is_shared_or_started_for_local_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.VARIABLE, raising=False)
    with server.shared_worker(local=False):
        assert client.VARIABLE not in os.environ
    with server.shared_worker():
        name = os.environ[client.VARIABLE]
        with server.shared_worker():
            assert os.environ[client.VARIABLE] == name
    assert client.VARIABLE not in os.environ


def test_the_client_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import reca.__main__; print(*set(sys.modules) - before)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(found.stdout.split())
    assert {name for name in loaded if name.startswith("reca")} <= {
        "reca", "reca.__main__", "reca.commands", "reca.commands.exits", "reca.worker", "reca.worker.client",
    }  # fmt: skip
    assert not loaded & {
        "argparse",
        "logging",
        "subprocess",
        "typing_extensions",
        "asyncio",
        "inspect",
    }


# ---- usage -----------------------------------------------------------------------------------------
BUSY = "held = bytearray(200 << 20); end = time.process_time() + 1.2\nwhile time.process_time() < end: pass"


def test_benchmark_files_count_the_job(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    from snakemake import benchmark

    monkeypatch.setattr(benchmark, "BenchmarkTimer", benchmark.BenchmarkTimer)
    assert jobs.count_in_benchmarks()
    process = commands.start(BUSY)
    with benchmark.benchmarked(process.pid) as record:
        assert process.wait(60) == 0
    assert record.cpu_time > 0.4 and record.max_rss > 200
    monkeypatch.delattr(benchmark, "BenchmarkTimer")
    assert not jobs.count_in_benchmarks()


def test_the_rehearsal_counts_jobs_while_their_worker_lives(commands: Commands) -> None:
    with used() as spent:
        commands.says("end = time.process_time() + 0.6\nwhile time.process_time() < end: pass")
    assert spent.cpu >= 0.6
