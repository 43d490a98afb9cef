"""A paper experiment at the size of a test through Snakemake itself: sources, shards, detector, judge, tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.evaluation import small_benchmarks as small
from tests.evaluation import tiny_networks as tiny
from tests.evaluation.judges import judge_server as js

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(900)]

GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"


def sources(mirror: Path, scratch: Path) -> dict[str, dict]:
    """Entries for sources.yaml, and their files in a mirror folder by name."""
    made = {
        "tiny-geneval": small.geneval(scratch / "geneval"),
        "tiny-detector": tiny.detector_folder(scratch / "detector"),
        "tiny-clip": tiny.clip_folder(scratch / "clip"),
        "tiny-wise": small.wise(scratch / "wise"),
    }
    entries = {}
    for name, folder in made.items():
        files = sorted(path.name for path in folder.iterdir())
        entries[name] = {
            "kind": "mirror", "revision": None, "files": files, "licence": "none", "used_by": ["test"],
        }  # fmt: skip
        shutil.copytree(folder, mirror / name)
    return entries


def experiment(mirror: Path, judge: dict) -> dict:
    return {
        "defaults": [
            {"/model@models.showo_tiny": "showo_tiny"},
            {"/align@models.showo_tiny.align": "laptop_smoke"},
            {"/data@data.reconstruct": "laptop_world"},
            "_self_",
        ],
        "name": "small_paper", "title": "Small", "question": "Does it run?", "seeds": [0], "arms": ["base"],
        "data": {"reconstruct": {"world": {"images": 8}}, "answer": "${data.reconstruct}"},
        "models": {"showo_tiny": {"sampler": {"steps": 2, "guidance": [2.0]}}},
        "benchmarks": {
            "geneval": {
                "kind": "geneval", "source": "tiny-geneval", "images_per_prompt": 1, "shards": 2,
                "companions": {"detector": "tiny-detector", "clip": "tiny-clip"},
            },
            "wise": {
                "kind": "wise", "source": "tiny-wise", "companions": {"judge": "tiny-wise"},
                "judge": judge,
            },
        },
        "mirror": str(mirror), "allow_unpinned": True,
        "cost": {"hardware": "two CPU cores", "hours": 0.01},
    }  # fmt: skip


def test_from_sources_to_the_page_and_nothing_twice(checkout, tmp_path):
    from dataclasses import asdict

    mirror = tmp_path / "mirror"
    listed = yaml.safe_load((checkout.root / "config/sources.yaml").read_text())
    listed["sources"] |= sources(mirror, tmp_path / "scratch")
    (checkout.root / "config/sources.yaml").write_text(yaml.safe_dump(listed, sort_keys=False))
    with js.serving(js.says(GOOD)) as server:
        judge = asdict(js.config(server, timeout_seconds=20.0))
        plain = yaml.safe_dump(experiment(mirror, judge), sort_keys=False)
        path = checkout.root / "config/experiment/small_paper.yaml"
        path.write_text("# @package _global_\n" + plain)
        key = {"RECA_TEST_JUDGE_KEY": js.KEY}
        checkout.snakemake("--cores", "2", "all", "paper_tables", experiment="small_paper", **key)
        assert len(server.asked) == 6
        assert checkout.plan("small_paper") == {}

        results = checkout.root / "results/small_paper"
        scores = results / "showo_tiny/base-0/geneval/test/scores/scores.json"
        found = json.loads(scores.read_text())
        assert found["coverage"]["scored"] == 6 and found["label"] == "geneval(hf-detector)"
        outcomes = json.loads((results / "report/outcomes.json").read_text())
        assert "tables" in outcomes and "Small" in (results / "report/index.html").read_text()
        assert (results / "paper/tables.md").is_file()

        # another option scores again; another judge asks again; neither samples anew
        scores = {"score": 1, "report": 1}
        edited = plain.replace(
            "kind: geneval\n", "kind: geneval\n    options: {max_overlap: 0.5}\n"
        )
        path.write_text("# @package _global_\n" + edited)
        assert checkout.plan("small_paper") == scores
        edited = plain.replace("judge-2024-05-13", "judge-2025-01-01")
        path.write_text("# @package _global_\n" + edited)
        assert checkout.plan("small_paper") == {"ask": 1, **scores}
    kept = [p for p in checkout.root.rglob("*") if p.is_file() and ".git" not in p.parts]
    assert all(
        js.KEY[:12] not in p.read_text(errors="replace") for p in kept if "tests" not in p.parts
    )
    said = checkout.run("python", "-m", "reca", "audit", "results/small_paper", check=False)
    assert "broken: results" not in said and "0 orphans" in said
