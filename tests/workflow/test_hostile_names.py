"""Folders whose names a shell or Snakemake would read as something else: all are only paths, none is executed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from reca.core.artifacts import read_manifest
from reca.data.prompts import bank
from tests.workflow.conftest import Checkout, copy_to

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(600)]

HOSTILE = Path(
    "my photos/photos (1)/O'Brien/r&d/$HOME/a;touch X/p$(touch X)/`touch X`/p{wildcards}/{model}/-o=\"q\\/用户"
)
EXPERIMENT = {
    "defaults": [
        {"/model@models.showo_tiny": "showo_tiny"},
        {"/align@models.showo_tiny.align": "laptop_smoke"},
        {"/benchmark@benchmarks.laptop": "laptop_smoke"},
        "_self_",
    ],
    "name": "hostile", "title": "{model} $(touch X)", "question": "?", "seeds": [0], "arms": ["base", "reca"],
    "cost": {"hardware": "two CPU cores", "hours": 0.01},
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in a folder of such names, with an experiment that takes everything from folders of such names."""
    place = tmp_path_factory.mktemp("hostile") / HOSTILE
    place.mkdir(parents=True)
    made = copy_to(place / "clone")
    told = ("noise", "relation", "count", "two", "colour", "single_colour")
    world = json.dumps({"images": 24, "caption": dict.fromkeys(told, 0.1)})
    for name in ("drawn", "read"):
        folder = place / name
        made.run("python3", "-m", "reca", "render", "--section", world, "--out", str(folder))
        (folder / "manifest.json").unlink()  # so it is the user's own
    shutil.copytree(made.root / "weights/showo_tiny", place / "weights")
    (place / "prompts.txt").write_text("\n".join(bank("laptop")))
    (place / "mirror/tiny").mkdir(parents=True)
    (place / "mirror/tiny/one.json").write_text("[]")
    sources = made.root / "config/sources.yaml"
    listed = yaml.safe_load(sources.read_text())
    listed["sources"]["tiny"] = {
        "kind": "mirror", "revision": None, "files": ["one.json"], "licence": "none", "used_by": ["test"],
    }  # fmt: skip
    sources.write_text(yaml.safe_dump(listed))
    write_experiment(made, place)
    return made


def write_experiment(made: Checkout, place: Path) -> None:
    described = {
        **EXPERIMENT,
        "data": {
            "reconstruct": {"kind": "parquet", "path": str(place / "drawn")},
            "answer": {"kind": "parquet", "path": str(place / "read")},
            "text": {"kind": "llava", "source": "tiny"},
        },
        "models": {
            "showo_tiny": {
                "weights": {"path": str(place / "weights")},
                "align": {"prompts": "file", "prompts_file": str(place / "prompts.txt"), "steps": 2},
            }
        },
        "mirror": str(place / "mirror"), "allow_unpinned": True,
    }  # fmt: skip
    text = "# @package _global_\n" + yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    (made.root / "config/experiment/hostile.yaml").write_text(text)


def written(made: Checkout) -> str:
    return (made.root / "config/experiment/hostile.yaml").read_text()


def executed(made: Checkout) -> list[Path]:
    """Files that a shell made which read a name as a command."""
    top = next(parent for parent in made.root.parents if parent.name == "my photos").parent
    return [path for path in top.rglob("X") if path.is_file()]


def test_an_alignment_runs_from_such_folders_and_reads_them(hostile):
    hostile.run(
        "snakemake", "--cores", "2", "--config", "experiment=hostile", "--", "checkpoints", "data/tiny/manifest.json"
    )  # fmt: skip
    assert executed(hostile) == []
    results = hostile.root / "results/hostile/showo_tiny"
    place = str(hostile.root.parent)
    for use, name in {"draw": "drawn", "read": "read"}.items():
        cached = read_manifest(results / "cache" / use)
        assert (
            cached["section"]["data"][{"draw": "reconstruct", "read": "answer"}[use]]["path"]
            == f"{place}/{name}"
        )
    assert (results / "reca/seed-0/log.jsonl").stat().st_size
    assert (hostile.root / "data/tiny/one.json").read_text() == "[]"
    # what the user changes is seen, and where a download came from changes nothing
    assert not {"fetch", "cache", "align"} & hostile.plan("hostile").keys()
    mirror = next(line for line in written(hostile).splitlines() if line.startswith("mirror:"))
    hostile.edit("config/experiment/hostile.yaml", mirror, "mirror: elsewhere")
    assert not {"fetch", "cache", "align"} & hostile.plan("hostile").keys()
    prompts = hostile.root.parent / "prompts.txt"
    prompts.write_text(prompts.read_text() + "\n")
    assert not {"fetch", "cache"} & (planned := hostile.plan("hostile")).keys()
    assert planned["align"] == 1
    drawn = next((hostile.root.parent / "drawn").glob("*.parquet"))
    (drawn.parent / ".DS_Store").write_text("of a file browser, and no image")
    assert "cache" not in hostile.plan("hostile")
    os.utime(drawn)
    assert hostile.plan("hostile")["cache"] == 1
    weights = hostile.root.parent / "weights/manifest.json"
    weights.write_text(weights.read_text() + "\n")  # not listed as an input, and still an input
    assert hostile.plan("hostile")["base"] == 1


def test_the_model_that_pretraining_goes_on_from_may_lie_in_such_a_folder(hostile):
    start = hostile.root.parent / "weights"
    experiment = "laptop_pretrain_bagel_edit"
    named = f"start: {json.dumps(str(start))}"
    hostile.edit(f"config/experiment/{experiment}.yaml", "start: weights/bagel_tiny", named)
    said = hostile.look("-n", "-p", "--config", f"experiment={experiment}")
    (command,) = [line for line in said.splitlines() if " pretrain base " in line]
    assert f"--start={start}" in shlex.split(command)


def test_make_reads_no_variable_as_a_command(hostile):
    hostile_text = "a;touch X;`touch X`'\""
    options = [f"{name}={hostile_text}" for name in ("EXPERIMENT", "TORCH_INDEX")]
    said = hostile.run("make", "-o", "setup", "reproduce", "VENV=absent", *options, check=False)
    assert "is not known" in said and executed(hostile) == []


def test_a_scheduler_is_not_given_jobs_in_such_a_folder(hostile):
    """Its plugin puts the folder's name into a script that a shell expands."""
    said = hostile.run(
        "snakemake", "--profile", "slurm", "--config", "experiment=hostile", check=False
    )
    (line,) = [line for line in said.splitlines() if "cannot start from a folder" in line]
    assert line.startswith(str(hostile.root)) and executed(hostile) == []


def test_a_folder_that_path_cannot_hold_is_refused(tmp_path):
    made = copy_to(tmp_path / "a:b")
    said = made.run("snakemake", "--dry-run", check=False)
    assert (
        said.splitlines()[-1]
        == f"{made.root}: PATH cannot hold a folder with ':' in its name; rename it"
    )
