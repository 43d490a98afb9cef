"""The laptop benchmark: GenEval's six tasks with GenEval's rules, dense prompts scored by share of
facts, questions about held-out scenes, and held-out scenes drawn again from their own embeddings.

Prompts of the two splits never meet: `development` chooses the guidance, `test` is reported. Both
are fixed by (seed, split).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reca.core.rng import numpy_generator
from reca.evaluation.tasks import geneval_rules
from reca.inference.items import Prompt, Question
from reca.toyworld import examiner
from reca.toyworld.scenes import COLOUR_NAMES, SHAPE_NAMES, Scene, draw_scene
from reca.toyworld.text import DESCRIBE, NUMBERS, RELATIONS, counted, dense_caption, questions

Generator = np.random.Generator
GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
DENSE_TASKS = ("dense", "dense_placed")
SPLITS = ("development", "test")


# ---- prompts ---------------------------------------------------------------------------------------------------------
def _distinct(names: Sequence[str], count: int, generator: Generator) -> list[str]:
    return [str(name) for name in generator.choice(names, size=count, replace=False)]


def _single(generator: Generator) -> tuple[str, dict[str, Any]]:
    (shape,) = _distinct(SHAPE_NAMES, 1, generator)
    return f"a {shape}", {"include": [{"class": shape, "count": 1}]}


def _two(generator: Generator) -> tuple[str, dict[str, Any]]:
    shapes = _distinct(SHAPE_NAMES, 2, generator)
    return " and ".join(f"a {s}" for s in shapes), {
        "include": [{"class": s, "count": 1} for s in shapes]
    }


def _counting(generator: Generator) -> tuple[str, dict[str, Any]]:
    (shape,) = _distinct(SHAPE_NAMES, 1, generator)
    number = int(generator.integers(2, len(NUMBERS)))
    clauses = {
        "include": [{"class": shape, "count": number}],
        "exclude": [{"class": shape, "count": number + 1}],
    }
    return counted(number, shape), clauses


def _colors(generator: Generator) -> tuple[str, dict[str, Any]]:
    (shape,), (colour,) = (
        _distinct(SHAPE_NAMES, 1, generator),
        _distinct(COLOUR_NAMES, 1, generator),
    )
    return f"a {colour} {shape}", {"include": [{"class": shape, "count": 1, "color": colour}]}


def _position(generator: Generator) -> tuple[str, dict[str, Any]]:
    first, second = _distinct(SHAPE_NAMES, 2, generator)
    relation = str(generator.choice(RELATIONS))
    clauses = [
        {"class": second, "count": 1},
        {"class": first, "count": 1, "position": [relation, 0]},
    ]
    return f"a {first} {relation} a {second}", {"include": clauses}


def _color_attr(generator: Generator) -> tuple[str, dict[str, Any]]:
    shapes, colours = _distinct(SHAPE_NAMES, 2, generator), _distinct(COLOUR_NAMES, 2, generator)
    clauses = [{"class": s, "count": 1, "color": c} for s, c in zip(shapes, colours, strict=True)]
    return " and ".join(f"a {c} {s}" for s, c in zip(shapes, colours, strict=True)), {
        "include": clauses
    }


def _dense(generator: Generator, place: bool) -> tuple[str, dict[str, Any]]:
    scene = draw_scene(generator, count=int(generator.integers(3, 5)))
    facts = [
        {"class": t.shape, "color": t.colour, **({"place": t.place} if place else {})}
        for t in scene.things
    ]
    return dense_caption(scene, place=place), {"facts": facts}


_MAKERS: dict[str, Callable[[Generator], tuple[str, dict[str, Any]]]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "dense": lambda generator: _dense(generator, place=False),
    "dense_placed": lambda generator: _dense(generator, place=True),
}


def prompts(split: str, per_task: int, seed: int) -> list[Prompt]:
    """`per_task` prompts of each of the eight tasks; prompt i of a task depends on (split, task, i, seed) alone."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; choose one of: {', '.join(SPLITS)}")
    made = []
    for task, make in _MAKERS.items():
        for index in range(per_task):
            text, facts = make(numpy_generator("laptop", split, task, index, seed))
            made.append(Prompt(f"{task}-{index:04d}", text, task, {"tag": task, **facts}))
    return made


def held_out_scenes(split: str, count: int, seed: int) -> list[Scene]:
    """Scenes that no training set holds by construction of their key; for reconstruction and questions."""
    return [
        draw_scene(numpy_generator("laptop", split, "scene", index, seed)) for index in range(count)
    ]


def held_out_questions(
    scenes: Sequence[Scene], per_scene: int, split: str, seed: int
) -> list[Question]:
    """The dense description and up to `per_scene` - 1 questions on each scene."""
    asked = []
    for index, scene in enumerate(scenes):
        generator = numpy_generator("laptop", split, "questions", index, seed)
        turns = {"describe": (DESCRIBE, dense_caption(scene)), **questions(scene, generator)}
        for kind in ["describe", *list(generator.permutation(list(turns)[1:]))[: per_scene - 1]]:
            text, answer = turns[str(kind)]
            asked.append(
                Question(f"{index:04d}-{kind}", f"scene-{index:04d}", text, answer, str(kind))
            )
    return asked


# ---- scores ----------------------------------------------------------------------------------------------------------
def score_prompt(prompt: Prompt, detections: Sequence[Mapping[str, Any]]) -> float:
    """1 or 0 by GenEval's rules for the six tasks; the share of facts for dense prompts."""
    if prompt.task in GENEVAL_TASKS:
        return float(geneval_rules.judge(prompt.facts, detections)[0])
    return share_of_facts(prompt.facts["facts"], detections)


def share_of_facts(
    facts: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]
) -> float:
    """The share of described objects in the image; each detection counts for one fact at most.

    A fact is an object with shape and colour, and its place where the prompt names it. As facts are equal or disjoint
    demands (a placed fact fixes all three), matching greedily is optimal.
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
    """Mean score per task, with `geneval` (unweighted mean of the six tasks, reference/benchmarks.md 2) where
    all six are there.
    """
    by_task: dict[str, list[float]] = {}
    for task, value in rows:
        by_task.setdefault(task, []).append(value)
    means = {task: float(np.mean(values)) for task, values in by_task.items()}
    if all(task in means for task in GENEVAL_TASKS):
        means["geneval"] = float(np.mean([means[task] for task in GENEVAL_TASKS]))
    return means


def same_answer(given: str, truth: str) -> bool:
    """Whether two answers are equal but for case and blanks; understanding is scored by exact match."""
    return " ".join(given.lower().split()) == " ".join(truth.lower().split())


def reconstruction_scores(
    detections: Sequence[Mapping[str, Any]], scene: Scene
) -> dict[str, float]:
    """How much of a held-out scene its reconstruction keeps: all of it exactly, and the share of placed objects."""
    facts = [{"class": t.shape, "color": t.colour, "place": t.place} for t in scene.things]
    exact = float(examiner.same_scene(detections, scene))
    return {"exact": exact, "objects": share_of_facts(facts, detections)}


def chance(split: str, per_task: int, seed: int, pictures: int = 2000) -> dict[str, float]:
    """The chance level of every task: true images of random scenes scored against prompts that
    they were not drawn for.
    """
    from reca.toyworld.scenes import draw_pixels

    generator = numpy_generator("laptop", "chance", seed)
    seen = [examiner.detect(draw_pixels(draw_scene(generator))) for _ in range(pictures)]
    asked = prompts(split, per_task, seed)
    picks = generator.integers(len(seen), size=(len(asked), 8))
    rows = [
        (p.task, score_prompt(p, seen[i])) for p, row in zip(asked, picks, strict=True) for i in row
    ]
    return task_means(rows)
