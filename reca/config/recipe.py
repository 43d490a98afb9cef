"""How a model is aligned, as data: every number of a published recipe, with its unit. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval, Len

from reca.core.structure import Count, NonNegative, Positive, Share, Whole, build, problem
from reca.data.order import Order, Visits
from reca.data.role import Role, stream_of

TASKS = ("reca", "i2t", "t2i", "text", "edit")
ARMS = ("reca", "reca_only", "sft", "shuffled", "random_encoder", "template_only")
# The role of the data that a task reads.
ROLE_OF = {
    "reca": Role.RECONSTRUCT,
    "i2t": Role.ANSWER,
    "t2i": Role.RECONSTRUCT,
    "text": Role.TEXT,
    "edit": Role.EDIT,
}

if TYPE_CHECKING:
    Task = str
else:
    Task = Literal[TASKS]

Decay = Annotated[float, Interval(ge=0, lt=1)]
Average = Annotated[float, Interval(gt=0, lt=1)]


@dataclass
class TaskRecipe:
    """One term of the objective: its lambda, and how many samples one micro-batch of one rank holds."""

    weight: NonNegative = 1.0  # lambda; 0 leaves the task out
    batch: Count = 4  # samples of a micro-batch of one rank


def _reca_only() -> dict[Task, TaskRecipe]:
    return {"reca": TaskRecipe()}


@dataclass
class Recipe:
    """L = sum over tasks of lambda * (mean over the task's tokens of one optimiser step), and how it is minimised."""

    tasks: dict[Task, TaskRecipe] = field(default_factory=_reca_only)
    trains: list[str] = field(default_factory=list)  # name patterns; empty: what the family trains
    shuffle_condition: bool = False  # control arm: the embeddings of another image of the batch
    # Control arms: embeddings in a random basis, or no embeddings, only the prompt.
    ablation: Literal["random_encoder", "template_only"] | None = None
    prompts: Literal["paper_like", "single", "laptop", "file"] = "paper_like"  # bank of templates
    prompts_file: str | None = None  # for the bank `file`: a list of prompts
    prompt_per: Literal["sample", "batch"] = "sample"  # how often a template is sampled
    turns_per_sample: Count | None = None  # conversation turns kept per sample; null keeps all

    steps: Count = 1000  # optimiser steps
    accumulation: Count = 1  # micro-batches of every task per optimiser step
    lr: Positive = 1e-4  # peak
    # Of samples: own, by (seed, step, rank); published, torch's endless permutations.
    order: Order = "own"
    # After the warm-up; published is Harmon's and OpenUni's, by micro-batch.
    schedule: Literal["cosine", "constant", "published"] = "cosine"
    warmup: Whole = 0  # optimiser steps, linear from 0; micro-batches where schedule is `published`
    horizon: Count | None = None  # where the cosine ends, counted like the warm-up; null: `steps`
    floor: Share = 0.0  # share of the peak rate where a cosine ends
    betas: Annotated[list[Decay], Len(2, 2)] = field(default_factory=lambda: [0.9, 0.999])
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01  # on the family's decay group
    clip: Positive | None = None  # global gradient norm; null: no clipping
    ema: Average | None = None  # decay of the moving average; null: none
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of autocast; trained weights stay fp32
    activation_checkpointing: bool = False  # recompute blocks in the backward pass
    compile: bool = False  # torch.compile of the trained blocks; equal up to rounding
    nonfinite: Literal["raise", "skip"] = "raise"  # a step whose loss or gradient is not finite
    nonfinite_limit: Whole = 10  # skipped steps of one run after which it raises all the same

    checkpoint_every: Whole = 1000  # optimiser steps; 0: only at the end
    keep: Count = 2  # latest checkpoints
    tensorboard: bool = False

    def active(self) -> dict[Task, TaskRecipe]:
        """The tasks with a weight, in the order of `TASKS`."""
        return {
            name: self.tasks[name]
            for name in TASKS
            if name in self.tasks and self.tasks[name].weight > 0
        }

    def roles(self) -> list[Role]:
        """The roles of data that the tasks with a weight read, without repetition."""
        return list(dict.fromkeys(ROLE_OF[name] for name in self.active()))

    def read_prompts_file(self) -> str | None:
        """The user's file of reconstruction prompts, if this recipe reads one."""
        return self.prompts_file if "reca" in self.active() else None

    def validate(self) -> None:
        """Check ranges and combinations; ValueError names the field, its value and what is allowed."""
        build(Recipe, asdict(self), "align")
        if not self.active():
            raise problem(
                "align.tasks", list(self.tasks), "at least one task needs a weight above 0"
            )
        if self.shuffle_condition and "reca" in self.active():
            batch = self.tasks["reca"].batch
            if batch < 2:
                allowed = "must be at least 2 with shuffle_condition"
                raise problem("align.tasks.reca.batch", batch, allowed)
        if (self.prompts == "file") != (self.prompts_file is not None):
            allowed = "must be a file where prompts is file, and null elsewhere"
            raise problem("align.prompts_file", self.prompts_file, allowed)


def for_arm(recipe: Recipe, arm: str) -> Recipe:
    """The recipe of one arm at equal compute: `sft` trains on captions, `shuffled` on another image's embeddings.

    A recipe that keeps captions in the objective (task t2i) has as many images of both tasks in every arm: `sft` takes
    those of reca as captions in addition to the kept ones, `reca_only` reconstructs them, as in the published objective
    with lambda_t2i = 0.
    """
    if arm not in ARMS:
        raise ValueError(f"arm {arm!r} is not known; choose one of: {', '.join(ARMS)}")
    if "reca" not in recipe.active():  # a control would be plain training under another name
        raise ValueError(
            f"arm {arm!r} is made from the task reca, which the recipe does not train; set align.tasks.reca"
        )
    if arm == "reca":
        return recipe
    if arm == "shuffled":
        return replace(recipe, shuffle_condition=True)
    if arm == "random_encoder":
        return replace(recipe, ablation="random_encoder")
    if arm == "template_only":
        return replace(recipe, ablation="template_only")
    others = {name: task for name, task in recipe.tasks.items() if name not in ("reca", "t2i")}
    reca, kept = recipe.tasks["reca"], recipe.active().get("t2i")
    if kept is not None:
        weight = reca.weight + (kept.weight if arm == "sft" else 0)  # published: lambda_reca alone
        reca = TaskRecipe(weight=weight, batch=reca.batch + kept.batch)
    elif arm == "reca_only":
        raise ValueError(
            "align.tasks.t2i = None: arm reca_only leaves out the captions that a recipe keeps; add the task, or leave "
            "the arm out, which would be reca"
        )
    return replace(recipe, tasks={**others, "t2i" if arm == "sft" else "reca": reca})


def visits(recipes: Sequence[Recipe], role: Role, seeds: Iterable[int], ranks: int) -> Visits:
    """The samples of a role that runs of these recipes read; the tasks of a role read the same ones."""
    read = [
        recipe.steps * recipe.accumulation * task.batch * ranks
        for recipe in recipes
        for name, task in recipe.active().items()
        if ROLE_OF[name] is role
    ]
    return Visits(
        order=recipes[0].order,
        stream=stream_of(role),
        seeds=tuple(seeds),
        samples=max(read, default=0),
    )
