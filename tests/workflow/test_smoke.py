"""The smoke experiment through the commands that a user types: run, run again, edit, kill, hand to DVC."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from reca.cli import main
from reca.commands.verbs import VERBS
from reca.core.artifacts import read_manifest
from tests.workflow.conftest import Checkout, smoke_copy_to

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(1200)]

REPORT = "results/laptop_smoke/report"
# what hangs on every checkpoint but the base model
TESTS = {"evaluate_test": 3, "report": 1}
CHOICE = {"evaluate_development": 3, "choose": 1, **TESTS}
# the base's scores on development prompts stay, but a choice is among all arms
ARMS = {"align": 2, **CHOICE, "evaluate_development": 2}

CODE = (
    "from __future__ import annotations\n",
    "from __future__ import annotations\n\n_EDITED = 1\n",
)

# What is edited -> the jobs that run again, and no others.
EDITS = {
    "title": ("config/experiment/laptop_smoke.yaml", "title: ", "title: A ", {"report": 1}),
    "recipe": ("config/align/laptop_smoke.yaml", "steps: 6", "steps: 7", ARMS),
    "sampler": ("config/experiment/laptop_smoke.yaml", "steps: 4", "steps: 5", CHOICE),
    "test prompts": ("config/benchmark/laptop_smoke.yaml", "\nprompts: 4", "\nprompts: 5", TESTS),
    "development prompts": (
        "config/benchmark/laptop_smoke.yaml", "development_prompts: 2", "development_prompts: 3", CHOICE,
    ),
    "data": (
        "config/experiment/laptop_smoke.yaml", "images: 96", "images: 97",
        {"render": 1, "cache": 2, **ARMS},
    ),
    "a seed more": (
        "config/experiment/laptop_smoke.yaml", "seeds: [0]", "seeds: [0, 1]",
        {"align": 2, **CHOICE},  # in which what is current is not made again
    ),
    "resources": ("config/model/showo_tiny.yaml", "memory_mb: 2000", "memory_mb: 2500", {}),
    "command line": ("reca/cli.py", *CODE, {}),
    "trainer": ("reca/align/trainer.py", *CODE, ARMS),
    "comment": ("reca/align/trainer.py", CODE[0], f"# Why.\n{CODE[0]}", {}),
    "docstring": ("reca/align/trainer.py", '"""', '"""Edited. ', {}),
    "choice of guidance": ("reca/evaluation/choose.py", *CODE, {**TESTS, "choose": 1}),
    "page": ("reca/report/page.py", *CODE, {"report": 1}),
    "scoring": ("reca/evaluation/tasks/laptop.py", *CODE, CHOICE),
    "network": (
        "reca/models/showo/network.py", *CODE,
        {"base": 1, "cache": 2, "align": 2, **CHOICE},
    ),
    "world": (
        "reca/toyworld/render.py", *CODE, {"render": 1, "cache": 2, **ARMS},
    ),
}  # fmt: skip


def test_the_smoke_experiment_is_whole_and_runs_once(finished):
    for name in ("index.html", "outcomes.json", "manifest.json"):
        assert (finished.root / REPORT / name).stat().st_size > 0
    assert finished.plan() == {}
    logs = finished.root / "logs/laptop_smoke"
    assert all(path.stat().st_size for path in logs.rglob("reca-0.log"))


def test_snakemake_reports(finished_copy):
    finished_copy.snakemake("--report", "report.html")
    page = (finished_copy.root / "report.html").read_text()
    assert "outcomes.json" in page and "Results" in page


def test_an_edit_reruns_what_depends_on_it_and_nothing_else(finished_copy):
    """One copy for all edits, each taken back: a dry run leaves no trace."""
    found = {}
    for name, (file, old, new, _) in EDITS.items():
        before = (finished_copy.root / file).read_bytes()
        finished_copy.edit(file, old, new)
        found[name] = finished_copy.plan()
        (finished_copy.root / file).write_bytes(before)
    assert found == {name: jobs for name, (*_, jobs) in EDITS.items()}
    assert finished_copy.plan() == {}


def test_new_time_stamps_alone_rerun_nothing(finished_copy):
    """Copying or pulling results changes times, not content."""
    for path in finished_copy.root.rglob("manifest.json"):
        os.utime(path, None)
    assert finished_copy.plan() == {}


def test_killed_again_and_again_it_ends_with_the_same_hashes(tmp_path, finished, campaign):
    """SIGKILL at four moments, of all processes or of the driver alone; then DVC goes on, on all cores.

    So `dvc repro` gives what `snakemake` gave on one core, and the second time does nothing.
    """
    made = under_dvc(smoke_copy_to(tmp_path / "clone"))
    kill_at(made, "base.log", after=2)
    kill_at(made, "*-0.log", after=3, driver_only=True)  # an alignment, whichever comes first
    kill_at(made, "*-development.log", after=2, driver_only=True)
    kill_at(made, "*-test.log", after=2)
    made.run("dvc", "repro")
    assert made.hashes() == finished.hashes()
    campaign.count(4)
    assert "Running stage" not in made.run("dvc", "repro")
    assert "up to date" in made.run("dvc", "status")
    assert made.plan() == {}


def kill_at(checkout: Checkout, logs: str, *, after: float, driver_only: bool = False) -> None:
    """Start a run, and kill it some seconds after the first job with such a log began."""
    folder = checkout.root / "logs/laptop_smoke/showo_tiny"
    for path in folder.glob(logs):
        path.unlink()
    with subprocess.Popen(
        ["snakemake", "--cores", "2", "--config", "experiment=laptop_smoke"],
        cwd=checkout.root,
        env=checkout.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        while not any(folder.glob(logs)) and driver.poll() is None:
            time.sleep(0.05)
        time.sleep(after)
        assert driver.poll() is None, f"the run ended before it could be killed at {logs}"
        if driver_only:
            driver.kill()
        else:
            os.killpg(driver.pid, signal.SIGKILL)


def test_killed_at_random_times_it_ends_with_the_same_hashes(tmp_path, campaign, request):
    if not campaign.full:
        pytest.skip("ten kills at random times belong to `make reliability`")
    made = smoke_copy_to(tmp_path / "clone")
    for number, rng in enumerate(campaign.draws(0, full=10)):
        kill_at(made, "**/*.log", after=rng.uniform(0, 6), driver_only=number % 2 == 0)
        campaign.count(1)
    made.snakemake("--cores", "2")
    assert made.hashes() == request.getfixturevalue("finished").hashes()
    assert made.plan() == {}


STAGES_AGAIN = {
    "render": ("world", "data/laptop_smoke-reconstruct"),
    "base": ("base", "base"),
    "cache": ("draw", "cache/draw"),
    "align": ("reca", "reca/seed-0"),
    "sample": ("samples", "reca-0/laptop/test/samples"),
    "observe": ("evidence", "reca-0/laptop/test/evidence"),
    "score": ("scores", "reca-0/laptop/test/scores"),
}


def test_examples_of_the_help_work_as_printed(finished_copy, monkeypatch, capsys):
    """On a finished experiment every stage's example makes that very stage again, to the same bytes."""
    monkeypatch.chdir(finished_copy.root)
    smoke = re.compile("laptop(?!_smoke)")
    examples = {verb.name: smoke.sub("laptop_smoke", verb.example) for verb in VERBS}
    words = {name: shlex.split(text)[1:] for name, text in examples.items()}
    for name in ("sample", "observe", "score", "choose"):
        words[name] = [word.replace("0/laptop_smoke/", "0/laptop/") for word in words[name]]
    order = [
        *STAGES_AGAIN,
        "choose",
        "report",
        "draw",
        "reconstruct",
        "ask",
        "audit",
        "sources",
        "schema",
    ]
    for name in order:
        assert main(words[name]) == 0, (examples[name], capsys.readouterr().err)
    model = Path("results/laptop_smoke/showo_tiny")
    for again, first in STAGES_AGAIN.values():
        folder = Path(first) if first.startswith("data/") else model / first
        made, known = (read_manifest(f)["outputs"] for f in (Path("work/again") / again, folder))
        assert made == known, again


# ---- DVC -----------------------------------------------------------------------------------------
def under_dvc(checkout: Checkout) -> Checkout:
    """The same stages for the smoke experiment, whose only model is Show-o, in a git repository."""
    plan = yaml.safe_load((checkout.root / "dvc.yaml").read_text())
    models = {"showo_tiny": {"world": "reconstruct"}}
    plan["vars"] = [{"experiment": "laptop_smoke"}, {"worlds": ["reconstruct"]}, {"models": models}]
    report = plan["stages"]["report"]
    own = [name for name in report["deps"] if "_bound" not in name]
    report["deps"] = [*own, "results/${experiment}/showo_tiny"]
    (checkout.root / "dvc.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    git(checkout, "init", "--quiet")
    commit(checkout)
    return checkout


def git(checkout: Checkout, *words: str) -> str:
    return checkout.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words)


def commit(checkout: Checkout) -> None:
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "state")


def make(checkout: Checkout, target: str) -> str:
    """A target of the Makefile in the environment that runs the tests, without setting one up."""
    return checkout.run("make", "-o", "setup", target, "RECORDED=laptop_smoke", "VENV=absent")


@pytest.fixture
def s3(monkeypatch):
    """The address of an S3 as moto speaks it, on loopback, with a bucket `reca`."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="reca")
    yield url
    server.stop()


@pytest.fixture(scope="module")
def shelved(finished, tmp_path_factory):
    """The finished experiment handed to DVC and pushed to a folder, beside it."""
    folder = tmp_path_factory.mktemp("shelved")
    shutil.copytree(finished.root, folder / "clone", symlinks=True)
    here = under_dvc(Checkout(folder / "clone"))
    make(here, "record")
    here.run("dvc", "remote", "add", "--default", "shelf", str(folder / "shelf"))
    here.run("dvc", "push")
    commit(here)
    return here


def test_dvc_takes_over_what_snakemake_made(shelved, tmp_path, s3):
    """record -> status clean, repro does nothing; push to a folder and to S3 -> clones pull and train nothing."""
    here = shelved
    assert "up to date" in here.run("dvc", "status")
    assert "Running stage" not in here.run("dvc", "repro")
    here.run("dvc", "remote", "add", "cloud", "s3://reca/results")
    here.run("dvc", "remote", "modify", "cloud", "endpointurl", s3)
    here.run("dvc", "push", "--remote", "cloud")
    commit(here)

    there = clone(here, tmp_path / "from the shelf")
    there.run("dvc", "pull")
    for path in there.root.rglob("manifest.json"):  # as if all had come in the right order
        os.utime(path, (0, 0))
    make(there, "pull")
    assert there.hashes() == here.hashes()
    assert there.plan() == {}
    assert "up to date" in there.run("dvc", "status")
    there.edit(*EDITS["recipe"][:3])  # what was pulled still knows what it was made from
    assert there.plan() == ARMS

    from_cloud = clone(here, tmp_path / "from the cloud")
    from_cloud.run("dvc", "pull", "--remote", "cloud")
    assert from_cloud.hashes() == here.hashes()


def test_a_damaged_remote_is_found_by_the_pull(shelved, tmp_path):
    shelf = shutil.copytree(shelved.root.with_name("shelf"), tmp_path / "shelf")
    largest = max(shelf.rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(data)
    there = clone(shelved, tmp_path / "there")
    there.run("dvc", "remote", "modify", "--local", "shelf", "url", str(shelf))
    with pytest.raises(AssertionError, match=r"broken: results/.*content differs"):
        make(there, "pull")
    assert there.plan() != {}  # nothing was declared to be up to date


def clone(here: Checkout, path: Path) -> Checkout:
    git(here, "clone", "--quiet", str(here.root), str(path))
    return Checkout(path)


def test_record_refuses_an_unfinished_experiment(plans):
    with pytest.raises(AssertionError, match="not finished"):
        make(plans, "record")
