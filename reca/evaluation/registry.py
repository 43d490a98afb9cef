"""The benchmarks: their modules, the abilities they need from a model, and their observers. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

Needs = Literal["draw", "edit", "answer", "reconstruct"]
Evidence = Literal["detector", "vqa", "judge", "similarity", "examiner", "none"]


@dataclass(frozen=True)
class Kind:
    """A kind of benchmark. `needs`: what the model must do; `evidence`: what observes its output before scoring.

    `toyworld`: prompts are generated instead of fetched, guidance may be swept, and the exact examiner observes. Such a
    benchmark is small enough to sample, observe and score a run in one process.
    """

    needs: tuple[Needs, ...]
    evidence: Evidence
    scorer: str = ""  # default name of the observer
    toyworld: bool = False

    @property
    def images(self) -> bool:
        """Whether the model generates images."""
        return self.needs != ("answer",)


KINDS = {
    "laptop": Kind(("draw", "reconstruct", "answer"), "examiner", "examiner", toyworld=True),
    "laptop_edit": Kind(("edit",), "examiner", "examiner", toyworld=True),
    "geneval": Kind(("draw",), "detector", "hf-detector"),
    "dpg": Kind(("draw",), "vqa", "blip-vqa"),
    "wise": Kind(("draw",), "judge"),
    "t2i_compbench": Kind(("draw",), "judge"),
    "imgedit": Kind(("edit",), "judge"),
    "gedit": Kind(("edit",), "judge"),
    "mme": Kind(("answer",), "none"),
    "pope": Kind(("answer",), "none"),
    "gqa": Kind(("answer",), "none"),
    "mmmu": Kind(("answer",), "none"),
    "seed": Kind(("answer",), "none"),
    "mmbench": Kind(("answer",), "none"),
    "mmvp": Kind(("answer",), "none"),
    "mmvet": Kind(("answer",), "judge"),
    "reconstruction": Kind(("reconstruct",), "similarity", "lpips-clip-dino"),
}


def kind(name: str) -> Kind:
    """A benchmark's kind; ValueError for an unknown name."""
    if name not in KINDS:
        raise ValueError(f"benchmark {name!r} is not known; choose one of: {', '.join(KINDS)}")
    return KINDS[name]


def module(name: str) -> ModuleType:
    """The benchmark's module, with prompts or questions, judge requests, and `grade`."""
    kind(name)
    return import_module(task_module(name))


def task_module(name: str) -> str:
    """Module path of a benchmark's prompts and scoring; fingerprints use it without importing the module."""
    return f"reca.evaluation.tasks.{name}"


def observer(name: str) -> str | None:
    """Module path of a benchmark's observer; None if answers are scored directly."""
    evidence = kind(name).evidence
    return None if evidence == "none" else f"reca.evaluation.observers.{evidence}"


def label(name: str, scorer: str | None, judge: str | None) -> str:
    """The name of a score in tables, which includes the observer."""
    seen_by = judge or scorer or KINDS[name].scorer
    return f"{name}({seen_by})" if seen_by else name


def scorer(name: str, chosen: str | None) -> str | None:
    """The network that looks at the images of a benchmark; None where a judge, the examiner or nothing does."""
    return None if KINDS[name].toyworld else chosen or KINDS[name].scorer or None
