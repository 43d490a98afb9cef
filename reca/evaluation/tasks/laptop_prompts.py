"""The laptop benchmark's prompts, held-out scenes and questions, and which of them each split samples.

GenEval's six tasks with GenEval's rules, dense prompts scored by share of facts, questions about held-out scenes, and
reconstructions of held-out scenes from their own embeddings. The two splits have separate prompts: guidance is chosen
on `development`, and `test` is reported. Both depend only on (seed, split).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from reca.core.rng import numpy_generator
from reca.evaluation.assignment import Assignment, ImagePass
from reca.inference.imageset import png
from reca.inference.items import Prompt, Question
from reca.toyworld.scenes import COLOUR_NAMES, SHAPE_NAMES, Scene, draw_pixels, draw_scene
from reca.toyworld.text import DESCRIBE, NUMBERS, RELATIONS, counted, dense_caption, questions

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

Generator = np.random.Generator
GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
DENSE_TASKS = ("dense", "dense_placed")
SPLITS = ("development", "test")
STRICT = "geneval_strict"  # GenEval's tasks, and nothing more in the image than the prompt asks for
AT_BASE, CURVE = "@base", "curve@"  # in names of guidance levels: the base's choice, one of a curve
# Outcomes whose choices of guidance a task's prompts are sampled for.
CHOICES = dict.fromkeys(DENSE_TASKS, ("dense",)) | dict.fromkeys(GENEVAL_TASKS, ("geneval", STRICT))
QUESTIONS_PER_SCENE = 3
BATCH = 128  # images of 16 x 16 pixels per model call
LONGEST = 48  # tokens per answer; the description of four objects has 36
RECONSTRUCTED = "reconstruct"  # key prefix of reconstructions


# ---- prompts ---------------------------------------------------------------------------------------
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
    """`per_task` prompts of each of the eight tasks; prompt i of a task depends only on (split, task, i, seed)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; choose one of: {', '.join(SPLITS)}")
    made = []
    for task, make in _MAKERS.items():
        for index in range(per_task):
            text, facts = make(numpy_generator("laptop", split, task, index, seed))
            made.append(Prompt(f"{task}-{index:04d}", text, task, {"tag": task, **facts}))
    return made


def held_out_scenes(split: str, count: int, seed: int) -> list[Scene]:
    """Scenes for reconstruction and questions; their random key is not used for any training set."""
    return [
        draw_scene(numpy_generator("laptop", split, "scene", index, seed)) for index in range(count)
    ]


def held_out_questions(
    scenes: Sequence[Scene], per_scene: int, split: str, seed: int
) -> list[Question]:
    """The dense description and up to `per_scene` - 1 questions for each scene."""
    asked = []
    for index, scene in enumerate(scenes):
        generator = numpy_generator("laptop", split, "questions", index, seed)
        turns = {"describe": (DESCRIBE, dense_caption(scene)), **questions(scene, generator)}
        for kind in ["describe", *list(generator.permutation(list(turns)[1:]))[: per_scene - 1]]:
            text, answer = turns[str(kind)]
            asked.append(Question(f"{index:04d}-{kind}", scene_id(index), text, answer, str(kind)))
    return asked


def test_seed(benchmark: Mapping[str, Any], what: str) -> int:
    """The seed of `prompts`, `scenes`, `questions` or `edits` of the test split; `benchmark` is its configuration."""
    seed: int = benchmark.get("test_seeds", {}).get(what, benchmark["seed"])
    return seed


# ---- what a split samples ---------------------------------------------------------------------------
@dataclass(frozen=True)
class SplitPlan:
    """Prompts by guidance level, and the held-out scenes to reconstruct and to ask about (test split only)."""

    prompts: dict[float, list[Prompt]]
    images_per_prompt: int = 1
    scenes: Sequence[Scene] = ()
    reconstructions: int = 0
    questions: Sequence[Question] = field(default_factory=tuple)

    def entries(self) -> list[tuple[str, int]]:
        """Key and index of every image, prompts first."""
        drawn = [
            (sample_key(level, prompt.id), index)
            for level, asked in self.prompts.items()
            for prompt in asked
            for index in range(self.images_per_prompt)
        ]
        return [*drawn, *((reconstruction_key(n), 0) for n in range(self.reconstructions))]


def plan(
    section: BenchmarkConfig, split: str, guidance: Sequence[float] | Mapping[str, float]
) -> SplitPlan:
    """What a split samples. Development: GenEval's tasks and dense prompts at every level of a sweep. Test: every task
    at its chosen levels, reconstructions and questions.

    `guidance` is a list of levels, or levels by name: `{"dense": level, "geneval": level}` and what else
    `reca.evaluation.choose.requested` adds.
    """
    if isinstance(guidance, Mapping):
        return _test_plan(section, {name: float(level) for name, level in guidance.items()})
    levels = [float(level) for level in guidance]
    if split == "test":
        if len(levels) != 1:
            raise ValueError(
                f"the test split is sampled at one guidance level per outcome, not at {levels}; run `reca choose` first"
            )
        return _test_plan(section, {"dense": levels[0], "geneval": levels[0]})
    wanted = [
        p
        for p in prompts(split, section.development_prompts, section.seed)
        if p.task != "dense_placed"
    ]
    return SplitPlan({level: wanted for level in levels}, section.images_per_prompt)


def _test_plan(section: BenchmarkConfig, chosen: Mapping[str, float]) -> SplitPlan:
    of = partial(test_seed, vars(section))
    asked = [
        (level, prompt)
        for prompt in prompts("test", section.prompts, of("prompts"))
        for level in _levels_of(prompt, chosen, section.curve_prompts)
    ]
    by_level: dict[float, list[Prompt]] = {level: [] for level in sorted({one for one, _ in asked})}
    for level, prompt in asked:
        by_level[level].append(prompt)
    shown = -(-section.questions // QUESTIONS_PER_SCENE)
    scenes = held_out_scenes("test", max(shown, section.reconstructions), of("scenes"))
    held_out = held_out_questions(scenes[:shown], QUESTIONS_PER_SCENE, "test", of("questions"))
    return SplitPlan(
        by_level,
        section.images_per_prompt,
        scenes,
        section.reconstructions,
        held_out[: section.questions],
    )


def _levels_of(prompt: Prompt, chosen: Mapping[str, float], curve_prompts: int) -> set[float]:
    """The levels at which a test prompt is sampled; the first of every task also at those of the curve."""
    names = {f"{name}{end}" for name in CHOICES[prompt.task] for end in ("", AT_BASE)}
    on_curve = number_of(prompt.id) < curve_prompts
    return {
        level
        for name, level in chosen.items()
        if name in names or (on_curve and name.startswith(CURVE))
    }


def number_of(prompt_id: str) -> int:
    """The number of a prompt within its task: 3 for `dense-0003`."""
    return int(prompt_id.rsplit("-", 1)[1])


def guidance_of(name: str, chosen: Mapping[str, float]) -> float | None:
    """The guidance at which an outcome is reported; None for one that has no guidance.

    Places and single tasks follow the outcome that they belong to. The strict rule has a choice of its own where its
    images were sampled, and judges GenEval's images where not.
    """
    if name.split("_")[0] in ("dense", "edit"):
        return chosen[name.split("_")[0]]
    if name.split(".")[0] == STRICT:
        return chosen.get(STRICT, chosen["geneval"])
    return chosen["geneval"] if name == "geneval" or name in GENEVAL_TASKS else None


def sample_key(level: float, prompt: str) -> str:
    """The key of a prompt's images at a guidance level."""
    return f"{level}/{prompt}"


def scene_id(index: int) -> str:
    """The id of a held-out scene."""
    return f"scene-{index:04d}"


def reconstruction_key(index: int) -> str:
    """The key of the reconstruction of a held-out scene."""
    return f"{RECONSTRUCTED}/{scene_id(index)}"


# ---- as an assignment ------------------------------------------------------------------------------
def assignment(
    benchmark: BenchmarkConfig, split: str, guidance: Sequence[float] | Mapping[str, float]
) -> Assignment:
    """The images and questions of one split; `guidance` as in `plan`."""
    from reca.data.prompts import bank

    asked = plan(benchmark, split, guidance)
    scenes = {scene_id(index): scene_png(scene) for index, scene in enumerate(asked.scenes)}
    passes = [
        ImagePass("draw", prompts, level, str(level), asked.images_per_prompt)
        for level, prompts in asked.prompts.items()
    ]
    again = [Prompt(scene_id(n), bank("laptop")[0], "") for n in range(asked.reconstructions)]
    # Guidance 0: the embeddings are the entire condition, there is nothing to guide away from.
    passes.append(ImagePass("reconstruct", again, 0.0, RECONSTRUCTED, sources=scenes))
    questions = sorted(asked.questions, key=lambda question: (question.image_ids, question.id))
    return Assignment(tuple(passes), questions, lambda part: scenes, BATCH, LONGEST)


def scene_png(scene: Scene) -> bytes:
    """The rendered image of a scene as PNG bytes."""
    return png(Image.fromarray(draw_pixels(scene)))
