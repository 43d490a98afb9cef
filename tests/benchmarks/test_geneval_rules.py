"""GenEval's rules against the golden decisions (shared/benchmarks, copied to tests/reference/golden/benchmarks)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from reca.benchmarks import geneval_rules as rules

GOLDEN = Path(
    os.environ.get(
        "RECA_BENCHMARK_GOLDEN", Path(__file__).parent.parent / "reference/golden/benchmarks"
    )
)


def golden(name: str) -> list[dict]:
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def test_every_image_decision() -> None:
    for case in golden("geneval_images"):
        correct, reason, kept = rules.judge(
            case["metadata"], case["detections"], case["max_overlap"]
        )
        expected = case["expected"]
        assert correct == expected["correct"], (case["id"], reason, expected["reason"])
        boxes = {name: [[*d["box"], d["score"]] for d in found] for name, found in kept.items()}
        assert boxes == {name: found for name, found in expected["kept"].items() if found}, case[
            "id"
        ]


def test_relations_and_overlap() -> None:
    for case in golden("geneval_geometry"):
        assert rules.relations(case["a"], case["b"]) == set(case["relations"]), case
        assert rules.iou(case["a"], case["b"]) == pytest.approx(case["iou_plus1"], abs=1e-9)


def printed(stdout: str) -> dict[str, float]:
    """The numbers of the official report: per task `name = x%`, the overall score, images and prompts."""
    tasks = {
        name: float(value) / 100
        for name, value in re.findall(r"^(\w+)\s+= ([\d.]+)%", stdout, re.M)
    }
    overall = float(re.search(r"over tasks\): ([\d.]+)", stdout)[1])
    images, prompts = (float(x) / 100 for x in re.findall(r"% correct \w+: ([\d.]+)%", stdout))
    return {"tasks": tasks, "overall": overall, "images": images, "prompts": prompts}


def test_summary() -> None:
    for case in golden("geneval_summary"):
        summary = rules.summarise(
            (row["tag"], row["prompt_key"], row["correct"]) for row in case["rows"]
        )
        expected = printed(case["stdout"])
        assert summary["tasks"] == pytest.approx(expected["tasks"], abs=5.1e-5)
        assert summary["overall"] == pytest.approx(expected["overall"], abs=5.1e-6)
        assert summary["images"] == pytest.approx(expected["images"], abs=5.1e-5)
        assert summary["prompts"] == pytest.approx(expected["prompts"], abs=5.1e-5)


def test_no_rows_give_no_number() -> None:
    assert rules.summarise([])["overall"] is None
