"""GenEval against the golden data: decisions, geometry, crops, colours, detector post-processing, summary."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from reca.evaluation.detectors import colours, instances
from reca.evaluation.tasks import geneval_rules as rules
from tests.reference.benchmark_cases import only

CLOSE = 1e-5  # reference/benchmarks.md 12, detector post-processing


def test_every_image_decision():
    for case in only("geneval_images", "cases")["cases"]:
        correct, reason, kept = rules.judge(
            case["metadata"], case["detections"], case["max_overlap"]
        )
        expected = case["expected"]
        assert correct == expected["correct"], (case["id"], reason, expected["reason"])
        assert bool(reason) == bool(expected["reason"])
        boxes = {name: [[*d["box"], d["score"]] for d in found] for name, found in kept.items()}
        assert boxes == {n: found for n, found in expected["kept"].items() if found}, case["id"]


def test_relations_and_overlap():
    for case in only("geneval_geometry", "cases")["cases"]:
        assert rules.relations(case["a"], case["b"]) == set(case["relations"]), case
        assert rules.iou(case["a"], case["b"]) == pytest.approx(case["iou_plus1"], abs=1e-9)


def printed(stdout):
    """The numbers of the official report: per task `name = x%`, the overall score, images and prompts."""
    tasks = {
        name: float(value) / 100
        for name, value in re.findall(r"^(\w+)\s+= ([\d.]+)%", stdout, re.M)
    }
    overall = float(re.search(r"over tasks\): ([\d.]+)", stdout)[1])
    images, prompts = (float(x) / 100 for x in re.findall(r"% correct \w+: ([\d.]+)%", stdout))
    return {"tasks": tasks, "overall": overall, "images": images, "prompts": prompts}


def test_summary():
    for case in only("geneval_summary", "cases")["cases"]:
        summary = rules.summarise((r["tag"], r["prompt_key"], r["correct"]) for r in case["rows"])
        expected = printed(case["stdout"])
        assert summary["tasks"] == pytest.approx(expected["tasks"], abs=5.1e-5)
        assert summary["overall"] == pytest.approx(expected["overall"], abs=5.1e-6)
        assert summary["images"] == pytest.approx(expected["images"], abs=5.1e-5)
        assert summary["prompts"] == pytest.approx(expected["prompts"], abs=5.1e-5)


def test_crops():
    for case in only("geneval_crops", "cases")["cases"]:
        assert set(case["options"]) <= {"bgcolor", "crop"}, "an option that is not known"
        keep = case["options"].get("bgcolor") == "original"
        mask = None if case["mask"] is None else np.array(case["mask"])
        image = np.array(case["image"], np.uint8)
        whole = [0, 0, image.shape[1], image.shape[0]]
        box = case["box"] if case["options"].get("crop") != "0" else whole
        found = colours.crop(image, box, mask, None if keep else colours.BACKGROUND)
        assert list(found.size) == case["expected_size"]
        assert np.array_equal(np.asarray(found), np.array(case["expected_rgb"], np.uint8))


def test_colour_head():
    golden = only("geneval_color_head", "color_order", "cases")
    assert tuple(golden["color_order"]) == colours.COLOURS
    for case in golden["cases"]:
        texts = np.array(case["text_embeddings_color_major_10x3xd"])
        vectors = colours.class_vectors(texts.reshape(len(colours.COLOURS), -1, texts.shape[-1]))
        pictures = np.array(case["image_embeddings"])
        assert colours.logits(pictures, vectors) == pytest.approx(
            np.array(case["logits"]), abs=1e-4
        )
        assert colours.choose(pictures, vectors) == case["colors"]


def test_detector_postprocess():
    for case in only("geneval_detector_postprocess", "cases")["cases"]:
        logits = torch.tensor(case["class_logits"])
        assert logits.shape[-1] == case["num_classes"] + 1
        found = instances.instances(
            logits,
            torch.tensor(case["mask_logits_quarter"]),
            tuple(case["padded_size"]),
            tuple(case["resized_size"]),
            tuple(case["original_size"]),
            case["max_per_image"],
        )
        assert len(found) == len(case["expected"])
        for ours, expected in zip(found, case["expected"], strict=True):
            assert (ours.query, ours.label) == (expected["query"], expected["label"])
            assert ours.score == pytest.approx(expected["score"], abs=CLOSE)
            assert list(ours.box) == pytest.approx(expected["box"], abs=CLOSE)
            assert int(ours.mask.sum()) == expected["mask_area"]
