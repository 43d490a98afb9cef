"""How a model is aligned, as data: every number of a published recipe, with its unit. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from reca.data.prompts import BANKS
from reca.data.role import Role

TASKS = ("reca", "i2t", "t2i", "text", "edit")
ARMS = ("reca", "sft", "shuffled")
# The role of the data that a task reads.
ROLE_OF = {
    "reca": Role.RECONSTRUCT,
    "i2t": Role.ANSWER,
    "t2i": Role.RECONSTRUCT,
    "text": Role.TEXT,
    "edit": Role.EDIT,
}


@dataclass
class TaskRecipe:
    """One term of the objective: its lambda, and how many samples one micro-batch of one rank holds."""

    weight: float = 1.0  # lambda; 0 leaves the task out
    batch: int = 4  # samples


def _reca_only() -> dict[str, TaskRecipe]:
    return {"reca": TaskRecipe()}


@dataclass
class Recipe:
    """L = sum over tasks of lambda * (mean over the task's tokens of one optimiser step), and how it is minimised."""

    tasks: dict[str, TaskRecipe] = field(default_factory=_reca_only)  # of TASKS
    trains: list[str] = field(default_factory=list)  # name patterns; empty: what the family trains
    shuffle_condition: bool = False  # control arm: the embeddings of another image of the batch
    prompts: str = (
        "paper_like"  # bank of reconstruction prompts: paper_like | single | laptop | file
    )
    prompts_file: str | None = None  # for the bank `file`: a list of prompts
    prompt_per: str = "sample"  # sample | batch: how often a reconstruction prompt is drawn
    turns_per_sample: int | None = None  # conversation turns kept per sample; null keeps all

    steps: int = 1000  # optimiser steps
    accumulation: int = 1  # micro-batches of every task per optimiser step
    lr: float = 1e-4  # peak
    order: str = (
        "own"  # of samples: own, by (seed, step, rank) | published, torch's endless permutations
    )
    schedule: str = (
        "cosine"  # cosine | constant, after the warm-up | published (Harmon's, by micro-batch)
    )
    warmup: int = (
        0  # optimiser steps, linear from 0; micro-batches where the schedule is `published`
    )
    horizon: int | None = None  # where the cosine ends, counted like the warm-up; null: at `steps`
    floor: float = 0.0  # share of the peak where the cosine ends
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.01  # on the family's decay group
    clip: float | None = None  # global gradient norm; null: no clipping
    ema: float | None = None  # decay of the moving average; null: none
    precision: str = "auto"  # auto | fp32 | bf16 (autocast; weights and optimiser stay fp32)
    activation_checkpointing: bool = False  # recompute blocks in the backward pass
    nonfinite: str = "raise"  # raise | skip a step whose loss or gradient is not finite
    nonfinite_limit: int = 10  # skipped steps of one run after which it raises all the same

    checkpoint_every: int = 1000  # optimiser steps; 0: only at the end
    keep: int = 2  # checkpoints
    tensorboard: bool = False

    def active(self) -> dict[str, TaskRecipe]:
        """The tasks with a weight, in the order of `TASKS`."""
        return {
            name: self.tasks[name]
            for name in TASKS
            if name in self.tasks and self.tasks[name].weight > 0
        }

    def roles(self) -> list[Role]:
        """The roles of data that the tasks with a weight read, without repetition."""
        return list(dict.fromkeys(ROLE_OF[name] for name in self.active()))

    def validate(self) -> None:
        """Check ranges and combinations; ValueError names the field, its value and what is allowed."""
        for name, task in self.tasks.items():
            _require(name in TASKS, f"tasks.{name}", name, f"one of {', '.join(TASKS)}")
            _require(task.weight >= 0, f"tasks.{name}.weight", task.weight, "at least 0")
            _require(task.batch >= 1, f"tasks.{name}.batch", task.batch, "at least 1")
        _require(
            bool(self.active()),
            "tasks",
            list(self.tasks),
            "at least one task with a weight above 0",
        )
        if self.shuffle_condition and "reca" in self.active():
            batch = self.tasks["reca"].batch
            _require(batch >= 2, "tasks.reca.batch", batch, "at least 2 with shuffle_condition")
        self._validate_choices()
        self._validate_numbers()

    def _validate_choices(self) -> None:
        allowed = {
            "prompts": BANKS,
            "prompt_per": ("sample", "batch"),
            "order": ("own", "published"),
            "schedule": ("cosine", "constant", "published"),
            "precision": ("auto", "fp32", "bf16"),
            "nonfinite": ("raise", "skip"),
        }
        for name, choices in allowed.items():
            value = getattr(self, name)
            _require(value in choices, name, value, f"one of {', '.join(choices)}")
        if (self.prompts == "file") != (self.prompts_file is not None):
            wanted = "a file where prompts is file, and null elsewhere"
            _require(False, "prompts_file", self.prompts_file, wanted)

    def _validate_numbers(self) -> None:
        for name, least in {"steps": 1, "accumulation": 1, "keep": 1, "warmup": 0}.items():
            _require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        for name in ("nonfinite_limit", "checkpoint_every", "weight_decay"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("lr", "eps", "clip"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "above 0")
        for name in ("turns_per_sample", "horizon"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "null or at least 1")
        betas_fit = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(betas_fit, "betas", self.betas, "two numbers in [0, 1)")
        _require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "null or between 0 and 1")
        _require(0 <= self.floor <= 1, "floor", self.floor, "between 0 and 1")


def for_arm(recipe: Recipe, arm: str) -> Recipe:
    """The recipe of one arm at equal compute: `sft` draws from captions, `shuffled` from another image's embeddings."""
    if arm == "reca":
        return recipe
    if arm == "shuffled":
        return replace(recipe, shuffle_condition=True)
    if arm != "sft":
        raise ValueError(f"arm {arm!r} is not known; choose one of: {', '.join(ARMS)}")
    if "reca" not in recipe.tasks:
        raise ValueError(
            "arm 'sft' puts t2i in the place of reca, but the recipe has no task reca; add align.tasks.reca"
        )
    others = {name: task for name, task in recipe.tasks.items() if name not in ("reca", "t2i")}
    return replace(recipe, tasks={**others, "t2i": recipe.tasks["reca"]})


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"align.{name} is {value!r}; allowed: {allowed}")
