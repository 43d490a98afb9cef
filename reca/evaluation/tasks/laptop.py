"""The laptop benchmark's scores: GenEval's six tasks, dense prompts, reconstructions and questions.

All functions are pure. The prompts, scenes and questions are in `laptop_prompts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reca.core.rng import numpy_generator
from reca.evaluation.graded import Graded, coverage_of, single_level
from reca.evaluation.tasks import geneval_rules
from reca.evaluation.tasks.laptop_prompts import (
    GENEVAL_TASKS,
    STRICT,
    SplitPlan,
    assignment,
    guidance_of,
    plan,
    prompts,
    reconstruction_key,
    sample_key,
    scene_id,
)
from reca.inference.items import Prompt
from reca.toyworld import examiner
from reca.toyworld.scenes import Scene, draw_pixels, draw_scene

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

__all__ = ["VERSION", "assignment", "grade"]

VERSION = "reca 1"
Item = dict[str, Any]
CHANCE_PROMPTS, CHANCE_PICTURES = 60, 400  # sample sizes of the reported chance level
RECONSTRUCTION = {"reconstruction": "objects", "reconstruction_exact": "exact"}
Detections = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]  # by image key and index


# ---- scores: pure ----------------------------------------------------------------------------------
def grade(
    benchmark: BenchmarkConfig,
    sampled: Mapping[str, Any],
    evidence: Iterable[Mapping[str, Any]],
    answers: Mapping[str, str],
    *,
    partial: bool = False,
) -> Graded:
    """Grade the detections `{"id", "sample", "detections"}` and answers of one split.

    `sampled` is the run's `samples.json`. `summary` has the outcomes at the guidance that was chosen for the arm, or
    that were sampled at one level only; `by_guidance` the outcomes of every level.
    """
    asked = plan(benchmark, sampled["split"], sampled["chosen"] or sampled["guidance"])
    seen = {(row["id"], int(row["sample"])): row["detections"] for row in evidence}
    statuses = [
        (f"{key}/{n}", "scored" if (key, n) in seen else "missing") for key, n in asked.entries()
    ]
    statuses += [
        (question.id, "scored" if question.id in answers else "missing")
        for question in asked.questions
    ]
    coverage = coverage_of(statuses)
    coverage.demand(benchmark.kind, partial)
    items = [
        *_prompt_items(asked, seen),
        *_reconstruction_items(asked, seen),
        *_question_items(asked, answers),
    ]
    levels = _by_guidance(items)
    chosen = sampled["chosen"] or {}
    summary = single_level(levels) | _at_choice(levels, chosen) | _held_out(items)
    return Graded(summary, items, coverage, by_guidance=levels)


def _at_choice(
    levels: Mapping[str, Mapping[str, float]], chosen: Mapping[str, float]
) -> dict[str, float]:
    """Every outcome at the guidance that was chosen for it; empty where nothing was chosen."""
    names = {name for means in levels.values() for name in means} if chosen else set()
    at = {name: str(level) for name in names if (level := guidance_of(name, chosen)) is not None}
    return {name: levels[level][name] for name, level in sorted(at.items()) if level in levels}


def _prompt_items(asked: SplitPlan, seen: Detections) -> Iterable[Item]:
    for level, asked_prompts in asked.prompts.items():
        for prompt in asked_prompts:
            for index in range(asked.images_per_prompt):
                found = seen.get((sample_key(level, prompt.id), index))
                if found is not None:
                    yield {
                        "kind": "prompt",
                        "id": prompt.id,
                        "index": index,
                        "task": prompt.task,
                        "guidance": level,
                        "score": score_prompt(prompt, found),
                        **_strict(prompt, found),
                        "objects": len(found),
                    }


def _strict(prompt: Prompt, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {"strict": strict_score(prompt, found)} if prompt.task in GENEVAL_TASKS else {}


def _reconstruction_items(asked: SplitPlan, seen: Detections) -> Iterable[Item]:
    for index, scene in enumerate(asked.scenes[: asked.reconstructions]):
        found = seen.get((reconstruction_key(index), 0))
        if found is not None:
            values = reconstruction_scores(found, scene)
            yield {"kind": "reconstruction", "id": scene_id(index), **values}


def _question_items(asked: SplitPlan, answers: Mapping[str, str]) -> Iterable[Item]:
    for question in asked.questions:
        if question.id in answers:
            right = float(same_answer(answers[question.id], question.answer))
            yield {"kind": "question", "id": question.id, "task": question.kind, "score": right}


def _by_guidance(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    levels: dict[str, list[tuple[str, float]]] = defaultdict(list)
    strict: dict[str, list[tuple[str, float]]] = defaultdict(list)
    objects: dict[str, list[int]] = defaultdict(list)
    for item in items:
        if item["kind"] == "prompt":
            level = str(item["guidance"])
            levels[level].append((item["task"], item["score"]))
            objects[level].append(item["objects"])
            if "strict" in item:
                strict[level].append((item["task"], item["strict"]))
    return {
        level: {
            **task_means(rows),
            **strict_means(strict[level]),
            "objects": float(np.mean(objects[level])),
        }
        for level, rows in levels.items()
    }


def _held_out(items: Sequence[Item]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    again = [item for item in items if item["kind"] == "reconstruction"]
    for outcome, name in RECONSTRUCTION.items():
        if again:
            found[outcome] = float(np.mean([item[name] for item in again]))
    asked = [(item["task"], item["score"]) for item in items if item["kind"] == "question"]
    if asked:
        found["understanding"] = float(np.mean([value for _, value in asked]))
        found |= {f"understanding.{kind}": value for kind, value in task_means(asked).items()}
    return found


# ---- the rules -------------------------------------------------------------------------------------
def score_prompt(prompt: Prompt, detections: Sequence[Mapping[str, Any]]) -> float:
    """The score of one image: 1 or 0 by GenEval's rules for the six tasks, the share of facts for dense prompts."""
    if prompt.task in GENEVAL_TASKS:
        return float(geneval_rules.judge(prompt.facts, detections)[0])
    return share_of_facts(prompt.facts["facts"], detections)


def strict_score(prompt: Prompt, detections: Sequence[Mapping[str, Any]]) -> float:
    """GenEval's verdict, and 1 only if the image has no other object than those that the prompt asks for.

    GenEval forgives extra objects, so that a cluttered image matches by chance; the examiner sees all objects.
    """
    asked = sum(clause["count"] for clause in prompt.facts["include"])
    return score_prompt(prompt, detections) if len(detections) == asked else 0.0


def share_of_facts(
    facts: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]
) -> float:
    """The share of described objects that the image shows; each detection matches at most one fact.

    A fact is an object with its shape and colour, and its place if the prompt specifies it. Greedy matching is optimal,
    because two facts are matched by either the same or disjoint sets of detections.
    """
    free = list(detections)
    found = 0
    for fact in facts:
        match = next((d for d in free if all(d[key] == value for key, value in fact.items())), None)
        if match is not None:
            free.remove(match)
            found += 1
    return found / len(facts)


def task_means(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean score per task, and `geneval`, the unweighted mean of the six tasks if all are present
    (reference/benchmarks.md 2).
    """
    by_task: dict[str, list[float]] = {}
    for task, value in rows:
        by_task.setdefault(task, []).append(value)
    means = {task: float(np.mean(values)) for task, values in by_task.items()}
    if all(task in means for task in GENEVAL_TASKS):
        means["geneval"] = float(np.mean([means[task] for task in GENEVAL_TASKS]))
    return means


def strict_means(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean strict scores of GenEval's tasks as `geneval_strict.<task>`, and `geneval_strict` over all six."""
    means = task_means(rows)
    overall = {STRICT: means.pop("geneval")} if "geneval" in means else {}
    return overall | {f"{STRICT}.{task}": value for task, value in means.items()}


def same_answer(given: str, truth: str) -> bool:
    """Whether two answers are equal, ignoring case and whitespace; understanding is scored by this exact match."""
    return " ".join(given.lower().split()) == " ".join(truth.lower().split())


def reconstruction_scores(
    detections: Sequence[Mapping[str, Any]], scene: Scene
) -> dict[str, float]:
    """Scores of the reconstruction of a held-out scene: whether it is exact, and the share of objects in place."""
    facts = [{"class": t.shape, "color": t.colour, "place": t.place} for t in scene.things]
    exact = float(examiner.same_scene(detections, scene))
    return {"exact": exact, "objects": share_of_facts(facts, detections)}


def chance(split: str, per_task: int, seed: int, pictures: int = 2000) -> dict[str, float]:
    """The chance level of every task: rendered images of random scenes, scored against unrelated prompts."""
    generator = numpy_generator("laptop", "chance", seed)
    seen = [examiner.detect(draw_pixels(draw_scene(generator))) for _ in range(pictures)]
    asked = prompts(split, per_task, seed)
    picks = generator.integers(len(seen), size=(len(asked), 8))
    pairs = [(p, seen[i]) for p, row in zip(asked, picks, strict=True) for i in row]
    strict = [(p.task, strict_score(p, found)) for p, found in pairs if p.task in GENEVAL_TASKS]
    return task_means((p.task, score_prompt(p, found)) for p, found in pairs) | strict_means(strict)
