"""A part of `make rehearse` in every test run: one published experiment on one benchmark, from the hub to the table."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from reca.config.compose import load
from reca.config.schema import Experiment
from reca.sources.catalogue import SOURCES_FILE
from tests.rehearsal import first_run, plan, slurm
from tests.rehearsal.driver import Failed, Outcome, Rehearsal, summed
from tests.rehearsal.servers import serving
from tests.rehearsal.web import Web
from tests.rehearsal.workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(900)]

NAME, SCALE = "paper_showo_vq", "tiny"
LEFT_OUT = re.compile(r"^.*(geneval|dpg|arm: base).*\n", re.MULTILINE)


def test_a_published_experiment_runs_from_the_hub_to_its_table(tmp_path: Path) -> None:
    """RecA on WISE alone: a judge, two shards, and no detector, which takes as long to load as all else.

    `test_paper_run.py` runs the base model on two benchmarks, with a detector.
    """
    space = Workspace.made(tmp_path / "rehearsal")
    path = space.root / f"config/experiment/{NAME}.yaml"
    text = LEFT_OUT.sub("", path.read_text())
    assert "arms: [base, reca]" in text
    path.write_text(text.replace("arms: [base, reca]", "arms: [reca]"))
    (space.root / "summary").mkdir()
    with serving(tmp_path / "served", space.root / SOURCES_FILE, SCALE) as servers:
        space.variables = servers.environment
        found = Rehearsal(space, servers, SCALE).run([NAME])
        assert not servers.web.refused and servers.hub.requests and servers.judge.asked
    assert found["tables"]["expectations_with_scores"] == 1 and found["refused_hosts"] == []
    assert found["experiments"][NAME]["audit"].endswith("0 broken, 0 orphans")
    assert found["stages"].keys() == {
        "base",
        "cache",
        "align",
        "sample",
        "observe",
        "score",
        "report",
    }
    tables = (space.root / "summary/tables/tables.md").read_text()
    assert "scale tiny, not a result" in tables
    difference = (space.root / f"summary/{NAME}-tiny.diff").read_text()
    assert "# number of optimiser steps" in difference


class Recorded(Rehearsal):
    """A rehearsal that runs nothing: a check of what does not exist yet fails as the command would."""

    def pin(self, _: object) -> None: ...

    def check(self, experiment: Experiment) -> None:
        if missing := set(plan.starts(experiment)) - self.state().keys():
            raise Failed(f"{experiment.name}: checked before {missing} had run")

    def experiment(self, *_: object) -> Outcome:
        return Outcome()

    def tables(self, *_: object) -> dict[str, Any]:
        return {}


def test_what_starts_from_another_experiment_is_checked_after_its_run(tmp_path: Path) -> None:
    space = Workspace.made(tmp_path / "rehearsal")
    (space.root / "summary").mkdir()
    servers: Any = SimpleNamespace(web=SimpleNamespace(refused=[]))
    wanted = ["paper_harmon_reca_then_sft"]
    found = Recorded(space, servers, SCALE).run(wanted)
    assert list(found["experiments"]) == [*plan.starts(load(*wanted)), *wanted]


def test_published_addresses_are_answered_and_every_other_host_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"0123456789")
    with Web({"files.example.org/a b.json": page}, {}, tmp_path).serving() as web:
        through = {"proxies": {"https": web.url}, "verify": str(web.authority), "timeout": 10}
        for head, body in ({}, b"0123456789"), ({"Range": "bytes=4-"}, b"456789"):
            got = requests.get("https://files.example.org/a%20b.json", headers=head, **through)
            assert got.content == body
        with pytest.raises(requests.exceptions.ProxyError, match="403"):
            requests.get("https://huggingface.co/api/models", **through)
    assert web.refused == {"huggingface.co"}


def test_the_page_of_the_first_run_is_read_as_it_says() -> None:
    page = first_run.PAGE.read_text()
    name = first_run.experiment(page)
    assert name in plan.published()
    found = first_run.steps(first_run.rehearsed(page, SCALE, has_slurm=False))
    commands = "\n".join(step.command for step in found)
    for verb in ("reca pin", "reca check", "reca plan", "snakemake -n", "reca audit", "reca paper"):
        assert verb in commands, verb
    assert f"experiment={name}-tiny" in commands and "--profile" not in commands
    assert f"experiment={name} " not in commands and "git clone" not in commands
    assert "--profile slurm" in first_run.rehearsed(page, SCALE, has_slurm=True)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("one\n  two 2\nthree\n", None),
        ("one\nbetween\n  two 22\nmore\nthree", None),
        ("three\none\n  two 2\n", "three"),
        ("one\ntwo 2\nthree\n", "  two ..."),
    ],
)
def test_lines_are_expected_in_order(said: str, wrong: str | None) -> None:
    assert first_run.absent(("one", "...", "  two ...", "three"), said) == wrong


def test_every_published_experiment_is_rehearsed_after_those_it_starts_from() -> None:
    order = list(plan.chosen(["paper_harmon_plus", "paper_harmon_reca_then_sft"], SCALE))
    for later, earlier in (
        ("paper_harmon_plus", "paper_harmon_plus_stage1"),
        ("paper_harmon_reca_then_sft", "paper_harmon_15b"),
    ):
        assert order.index(earlier) < order.index(later)
    with pytest.raises(ValueError, match="EXPERIMENTS=paper_bagle: did you mean 'paper_bagel'"):
        plan.chosen(["paper_bagle"], SCALE)
    assert set(plan.OF_FAMILY.values()) <= set(plan.published())


def test_a_summary_of_runs_through_slurm_claims_no_cpu_seconds() -> None:
    found = summed({"one": Outcome(jobs=3, seconds=9.0, cpu=1.0, audit="clean")})
    assert found["cpu_seconds"] and found["experiments"]["one"]["cpu"]
    found = slurm.without_cpu(found)
    assert found["jobs"] == 3 and "cpu" not in str(found)
