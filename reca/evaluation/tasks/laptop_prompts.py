"""What one laptop run draws and answers, and under which names: shared by drawing and scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import read_json
from reca.core.documents import fields
from reca.evaluation.tasks import laptop
from reca.inference.items import Prompt, Question
from reca.toyworld.scenes import Scene

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

QUESTIONS_PER_SCENE = 3


@dataclass(frozen=True)
class Plan:
    """Prompts by guidance level, and the held-out scenes that are drawn again and asked about (test split only)."""

    prompts: dict[float, list[Prompt]]
    images_per_prompt: int = 1
    scenes: Sequence[Scene] = ()
    reconstructions: int = 0
    questions: Sequence[Question] = field(default_factory=tuple)


def plan(
    section: BenchmarkConfig, split: str, guidance: Sequence[float] | Mapping[str, float]
) -> Plan:
    """Development: GenEval's tasks and dense prompts at every level of a sweep. Test: every task at its chosen level,
    reconstructions and questions. `guidance` is a list of levels, or the choice `{"dense": level, "geneval": level}`.
    """
    if isinstance(guidance, Mapping):
        return _test_plan(section, {name: float(level) for name, level in guidance.items()})
    levels = [float(level) for level in guidance]
    if split == "test":
        if len(levels) != 1:
            raise ValueError(
                f"the test split is drawn at one guidance per outcome, not at {levels}; run `reca choose` first"
            )
        return _test_plan(section, {"dense": levels[0], "geneval": levels[0]})
    wanted = [
        p
        for p in laptop.prompts(split, section.development_prompts, section.seed)
        if p.task != "dense_placed"
    ]
    return Plan({level: wanted for level in levels}, section.images_per_prompt)


def _test_plan(section: BenchmarkConfig, chosen: Mapping[str, float]) -> Plan:
    levels = {chosen["dense"], chosen["geneval"]}
    prompts: dict[float, list[Prompt]] = {level: [] for level in sorted(levels)}
    for prompt in laptop.prompts("test", section.prompts, section.seed):
        prompts[chosen["dense" if prompt.task in laptop.DENSE_TASKS else "geneval"]].append(prompt)
    asked = -(-section.questions // QUESTIONS_PER_SCENE)
    scenes = laptop.held_out_scenes("test", max(asked, section.reconstructions), section.seed)
    questions = laptop.held_out_questions(scenes[:asked], QUESTIONS_PER_SCENE, "test", section.seed)
    return Plan(
        prompts,
        section.images_per_prompt,
        scenes,
        section.reconstructions,
        questions[: section.questions],
    )


def sample_key(level: float, prompt: str) -> str:
    """The name of a prompt's images at a guidance level."""
    return f"{level}/{prompt}"


def reconstruction_key(index: int) -> str:
    """The name of a held-out scene drawn again."""
    return f"reconstruct/scene-{index:04d}"


def read_samples(folder: Path) -> dict[str, Any]:
    """What `samples.json` of a run says was asked; ValueError names the file and the key that is missing or odd."""
    path = folder / "samples.json"
    return fields(read_json(path), path, run=str, split=str, seed=int, guidance=object)
