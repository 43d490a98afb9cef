"""From one process to several nodes: what an alignment asks of the scheduler, and how it starts."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.workflow

EXPERIMENT, MODEL = "paper_showo_512", "config/model/showo_clip_512.yaml"
ASKED = "gpus: 1,"
RESOURCES = Path(__file__).parents[2] / "workflow/rules/resources.smk"

CASES = {
    "one GPU": (
        "gpus: 1,",
        "align",
        {"gpu": "1", "nodes": "1"},
        r"; python3 -m reca align --section",
    ),
    "one node": (
        "gpus: 8,",
        "align",
        {"gpu": "8", "nodes": "1"},
        r"; env OMP_NUM_THREADS=1 python3 -m torch.distributed.run --standalone --nproc-per-node=8 -m reca align ",
    ),
    "two nodes": (
        "gpus: 8, nodes: 2,",
        "align_nodes",
        {"gres": "gpu:8", "nodes": "2", "tasks": "2", "tasks_per_gpu": "0", "mpi": "srun"},
        r"; srun --nodes=2 --ntasks=2 .*--gres=gpu:8 .*torch.distributed.run --nnodes=2 --nproc-per-node=8 .*-m reca ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alignment_starts_as_its_resources_say(checkout, case):
    asked, rule, resources, command = CASES[case]
    checkout.edit(MODEL, ASKED, asked)
    said = checkout.look("--dry-run", "--printshellcmds", "--config", f"experiment={EXPERIMENT}")
    block = next(b for b in re.split(r"\n *rule ", said) if b.startswith(f"{rule}:"))
    listed = re.search(r"resources: (.*)", block).group(1)
    stated = dict(pair.split("=", 1) for pair in listed.split(", ") if "=" in pair)
    assert resources.items() <= stated.items()
    assert int(stated["mem_mb"]) >= 16000 and int(stated["runtime"]) >= 60
    assert re.search(command, block)


def test_encoding_and_drawing_ask_for_one_gpu_each(checkout):
    checkout.edit(MODEL, ASKED, "gpus: 8,")
    said = checkout.look("--dry-run", "--config", f"experiment={EXPERIMENT}")
    for rule in ("cache", "sample"):
        block = next(b for b in re.split(r"\n *rule ", said) if b.startswith(f"{rule}:"))
        assert re.search(r"resources: .*\bgpu=1\b", block)


def test_without_a_scheduler_one_job_at_a_time_uses_gpus():
    """Each would take the first GPU; who has said how many there are is left alone."""
    for given, expected in (({}, {"gpu": 1}), ({"gpu": 8}, {"gpu": 8})):
        limits = dict(given)
        fake = SimpleNamespace(global_resources=limits, register_resource=limits.__setitem__)
        rules = {"workflow": fake}
        exec(compile(RESOURCES.read_text(), RESOURCES, "exec"), rules)
        rules["one_gpu_job_at_a_time"]()
        assert limits == expected


def test_memory_grows_once():
    """Attempts are also those after a lost node, and no node has three times the memory."""
    rules = {}
    exec(compile(RESOURCES.read_text(), RESOURCES, "exec"), rules)
    assert [rules["grown"](1000, attempt) for attempt in (1, 2, 3, 4)] == [1000, 1500, 1500, 1500]
