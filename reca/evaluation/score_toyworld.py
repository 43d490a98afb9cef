"""The score stage of the laptop benchmark: samples in, `scores.json` and `items.jsonl` out. Pure; no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reca.core.artifacts import read_json, write_json, write_lines
from reca.core.documents import texts
from reca.inference.imageset import ImageSet
from reca.toyworld import examiner, tasks
from reca.toyworld.prompts import Plan, plan, read_samples, reconstruction_key, sample_key

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

Item = dict[str, Any]
CHANCE_PROMPTS, CHANCE_PICTURES = 60, 400


def score(section: BenchmarkConfig, samples: Path, out: Path) -> dict[str, Any]:
    """Score one run's samples; ValueError names what is missing, as a share of a benchmark is no result.

    `samples` is a folder of `reca generate`; `out` gets `scores.json` (means) and `items.jsonl`
    (every prompt and question).
    """
    if section.kind == "laptop_edit":
        from reca.evaluation.sample_edits import score_edits

        return score_edits(section, samples, out)
    described = read_samples(samples)
    asked = plan(section, described["split"], described["guidance"])
    pictures, answers = ImageSet(samples / "images.tar"), samples / "answers.json"
    items = [
        *_prompt_items(asked, pictures),
        *_reconstruction_items(asked, pictures),
        *_question_items(asked, texts(read_json(answers), answers)),
    ]
    result = {
        **{key: described[key] for key in ("run", "split", "seed")},
        "benchmark": section.kind,
        "guidance": _by_level(items),
        "counts": {
            kind: sum(item["kind"] == kind for item in items)
            for kind in ("prompt", "question", "reconstruction")
        },
        "chance": tasks.chance(described["split"], CHANCE_PROMPTS, section.seed, CHANCE_PICTURES),
        **_held_out(items),
    }
    write_json(out / "scores.json", result)
    write_lines(out / "items.jsonl", items)
    return result


def _pixels(pictures: ImageSet, key: str, index: int = 0) -> np.ndarray:
    return np.asarray(pictures.image(key, index).convert("RGB"))


def _prompt_items(asked: Plan, pictures: ImageSet) -> Iterable[Item]:
    for level, prompts in asked.prompts.items():
        for prompt in prompts:
            for index in range(asked.images_per_prompt):
                seen = examiner.detect(_pixels(pictures, sample_key(level, prompt.id), index))
                value = tasks.score_prompt(prompt, seen)
                yield {
                    "kind": "prompt",
                    "id": prompt.id,
                    "index": index,
                    "task": prompt.task,
                    "guidance": level,
                    "score": value,
                    "objects": len(seen),
                }


def _reconstruction_items(asked: Plan, pictures: ImageSet) -> Iterable[Item]:
    for index, scene in enumerate(asked.scenes[: asked.reconstructions]):
        seen = examiner.detect(_pixels(pictures, reconstruction_key(index)))
        values = tasks.reconstruction_scores(seen, scene)
        yield {"kind": "reconstruction", "id": f"scene-{index:04d}", **values}


def _question_items(asked: Plan, answers: Mapping[str, str]) -> Iterable[Item]:
    missing = [question.id for question in asked.questions if question.id not in answers]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(asked.questions)} questions have no answer, for instance {missing[0]}"
        )
    for question in asked.questions:
        right = float(tasks.same_answer(answers[question.id], question.answer))
        yield {"kind": "question", "id": question.id, "task": question.kind, "score": right}


def _by_level(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    levels: dict[str, list[tuple[str, float]]] = defaultdict(list)
    objects: dict[str, list[int]] = defaultdict(list)
    for item in items:
        if item["kind"] == "prompt":
            levels[str(item["guidance"])].append((item["task"], item["score"]))
            objects[str(item["guidance"])].append(item["objects"])
    return {
        level: {**tasks.task_means(rows), "objects": float(np.mean(objects[level]))}
        for level, rows in levels.items()
    }


def _held_out(items: Sequence[Item]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    redrawn = [item for item in items if item["kind"] == "reconstruction"]
    if redrawn:
        found["reconstruction"] = {
            name: float(np.mean([item[name] for item in redrawn])) for name in ("exact", "objects")
        }
    asked = [(item["task"], item["score"]) for item in items if item["kind"] == "question"]
    if asked:
        overall = float(np.mean([value for _, value in asked]))
        found["understanding"] = {**tasks.task_means(asked), "overall": overall}
    return found
