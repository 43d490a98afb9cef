"""Odd surroundings: blanks in paths, no HOME, another locale; the Makefile and CI scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from reca.core import processes

pytestmark = pytest.mark.workflow


def test_a_plan_in_a_folder_with_blanks_without_home_in_another_locale(checkout):
    environment = checkout.environment(LC_ALL="C", TZ="Pacific/Kiritimati")
    environment.pop("HOME", None)
    done = subprocess.run(
        ["snakemake", "--dry-run", "--quiet", "--config", "experiment=laptop_smoke"],
        cwd=checkout.root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_jobs_run_the_code_of_their_own_checkout(checkout):
    """Rendering in a copy imports the copy, whatever is installed."""
    checkout.edit("reca/toyworld/render.py", "from __future__ import annotations\n",
                  "from __future__ import annotations\n\nprint('rendered by the copy')\n")  # fmt: skip
    said = checkout.run("snakemake", "--cores", "1", "--config", "experiment=laptop_smoke", "--", "data",
                        PYTHONPATH="")  # fmt: skip
    assert "rendered by the copy" in said


def test_a_failing_job_says_why_and_leaves_nothing(checkout):
    checkout.edit("reca/toyworld/render.py", "def render(", "def unused(")
    said = checkout.run(
        "snakemake",
        "--cores",
        "1",
        "--config",
        "experiment=laptop_smoke",
        "--",
        "data",
        check=False,
    )
    assert "render" in said and "Error" in said
    assert not list((checkout.root / "data").rglob("manifest.json"))


MISTAKES = {
    "experiment=labtop": "experiment 'labtop' is not known; did you mean 'laptop'? allowed: ",
    "experimnt=laptop_smoke": "--config experimnt: did you mean 'experiment'? allowed: ",
    "seeds=[0]": "--config seeds: allowed: experiment, models",
    "models=other": "--config models=other: allowed: bagel_tiny_bound, showo_tiny_bound",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_config_is_one_line_with_what_is_allowed(plans, mistake):
    """Never a plan for something else: an unknown key would fall back to the default experiment."""
    said = plans.look("--dry-run", "--config", mistake, check=False).splitlines()
    (line,) = [line for line in said if not line.startswith("Using workflow specific profile")]
    assert line.startswith(MISTAKES[mistake])


@pytest.mark.parametrize("script", [".ci/run", ".ci/slurm.sh", ".ci/nothing_left.sh",
                                    "workflow/slurm_node/start.sh", "workflow/slurm_node/stop.sh"])  # fmt: skip
def test_scripts_are_executable_and_parse(plans, script):
    path = plans.root / script
    assert os.access(path, os.X_OK)
    plans.run("bash", "-n", str(path))


def test_the_one_node_slurm_has_all_cpus_whatever_the_threads_of_a_process(plans):
    script = (plans.root / "workflow/slurm_node/start.sh").read_text()
    (counted,) = re.findall(r"cpus=(\$\(.+?\))", script)
    said = plans.run("bash", "-c", f"echo {counted}", OMP_NUM_THREADS="1", OMP_THREAD_LIMIT="1")
    assert int(said) == len(os.sched_getaffinity(0))


def test_every_target_of_the_makefile_is_explained(plans):
    said = plans.run("make", "help")
    targets = (plans.root / "Makefile").read_text().split(".PHONY:")[1].split("\n")[0].split()
    for target in set(targets) - {"help"}:
        assert f"make {target}" in said


def test_local_jobs_run_in_a_worker_unless_it_is_off(checkout):
    started = "print(open('/proc/self/cmdline').read(), file=sys.stderr)"
    checkout.edit("reca/cli.py", "    parsed = parser()", f"    {started}\n    parsed = parser()")
    data = ("--cores", "1", "--config", "experiment=laptop_smoke", "--forceall", "--", "data")
    for variables, place in (({}, "worker/template.py"), ({"RECA_WORKER": "off"}, "-m\0reca")):
        checkout.run("snakemake", *data, **variables)
        assert place in (checkout.root / "logs/render/laptop_smoke-reconstruct.log").read_text()


LOOKS = [["--dry-run", "--quiet"], ["--summary"], ["--list-rules"], ["--unlock"]]


def test_looking_at_a_folder_ends_and_removes_nothing_and_a_run_says_whose_it_is(checkout):
    """Beside a run that looks dead, with a job that lives; then beside one on another machine."""
    marks, locks = checkout.root / processes.MARKS, checkout.root / processes.LOCKS
    dead = replace(processes.this_run(), started="1").mark
    marks.mkdir(parents=True)
    (marks / dead).touch()

    def lock() -> None:
        locks.mkdir(exist_ok=True)
        (locks / "0.output.lock").write_text("data/laptop_smoke-reconstruct/manifest.json\n")

    lock()
    wait = [sys.executable, "-c", "import time; time.sleep(300)"]
    with subprocess.Popen(wait, env=checkout.environment(RECA_RUN=dead)) as job:
        # else it stays a zombie, awaited for ten seconds
        threading.Thread(target=job.wait, daemon=True).start()
        try:
            for options in LOOKS:
                checkout.look(*options, "--config", "experiment=laptop_smoke")
                assert job.poll() is None and (marks / dead).exists(), options
                assert options == ["--unlock"] or list(locks.iterdir()), options
            lock()
            data = ("--cores", "1", "--config", "experiment=laptop_smoke", "--", "data")
            checkout.run("snakemake", *data)
            assert job.wait(5) is not None
            assert not list(marks.iterdir()) and not locks.exists()
        finally:
            job.kill()
    lock()
    (marks / replace(processes.this_run(), host="elsewhere", boot="other").mark).touch()
    said = checkout.run("snakemake", "--forceall", *data, check=False)
    assert "Exception" not in said and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("snakemake: ")]
    assert "a run on host elsewhere" in line and "rm -r .snakemake/runs .snakemake/locks" in line
