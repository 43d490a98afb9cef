"""Which samples a step sees, and every random choice about them, as pure functions of (seed, step, rank).

Nothing here has state, so resume and a change of the number of micro-batches need no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from reca.align.distributed import ProcessGroup
from reca.align.objective import MicroBatch, derangement
from reca.config.recipe import Recipe
from reca.core.artifacts import sha256_json
from reca.core.rng import generator, seed_of
from reca.data.order import Cursor, published_order
from reca.models.contract import Features, UnifiedModel, editor

Conversation = Sequence[tuple[str, str]]
"""(question, answer) turns about one image."""

# reca and t2i share order and draws: the arms reca, shuffled and sft see the same images under the same
# noise and differ in the condition alone.
ROLE = {"reca": "draw", "t2i": "draw", "i2t": "read", "text": "text", "edit": "edit"}


@dataclass(frozen=True)
class EditRows:
    """One edit as rows of a cache of images: the one to change, what becomes of it, and what is said."""

    source: int
    target: int
    instruction: str


class FeatureRows(Protocol):
    """Cached features of a data set (`reca.features.build`)."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> Features:
        """Features of these images, in this order."""


class TaskData(Protocol):
    """What the trainer reads; pure look-ups, no order and no randomness."""

    @property
    def prompts(self) -> Sequence[str]:
        """The bank of reconstruction prompts."""

    def fingerprint(self) -> str:
        """Hash of all that the look-ups below can give."""

    def size(self, role: str) -> int:
        """Number of samples of a role: draw, read, text or edit."""

    def features(self, role: str, indices: Sequence[int]) -> Features:
        """Cached rows of the role's images."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of `draw` images."""

    def conversations(self, role: str, indices: Sequence[int]) -> list[Sequence[Conversation]]:
        """All conversations of each sample of `read` or `text`."""

    def edits_of(self, indices: Sequence[int]) -> list[EditRows]:
        """Edits, whose rows are those of role `edit`."""


@dataclass(frozen=True)
class FeatureData:
    """Caches joined with their texts: row i of a cache belongs to entry i of the lists.

    `draw` serves reca (with `prompts`) and t2i (with `draw_captions`); `read` serves i2t (with
    `read_conversations`, one or more per image); `text_conversations` serve the task text; `edits` point into the
    images of `edit`.
    """

    draw: FeatureRows | None = None
    read: FeatureRows | None = None
    prompts: Sequence[str] = ()
    draw_captions: Sequence[str] = ()
    read_conversations: Sequence[Sequence[Conversation]] = ()
    text_conversations: Sequence[Sequence[Conversation]] = ()
    edit: FeatureRows | None = None
    edits: Sequence[EditRows] = ()
    identity: dict[str, str] = field(default_factory=dict)
    """Hashes that name the caches (for instance of their manifests); a resume with others is refused."""

    def __post_init__(self) -> None:
        _same_length("draw_captions", self.draw_captions, self.draw)
        _same_length("read_conversations", self.read_conversations, self.read)
        for name in ("read_conversations", "text_conversations"):
            for row, conversations in enumerate(getattr(self, name)):
                if not conversations or not all(conversations):
                    raise ValueError(
                        f"{name}[{row}] has no turn; drop this sample from the data set"
                    )

    def fingerprint(self) -> str:
        """Hash of all texts, of the sizes, and of `identity`."""
        texts = [list(self.prompts), list(self.draw_captions)]
        turns = [list(self.read_conversations), list(self.text_conversations)]
        sizes = [len(rows) if rows is not None else None for rows in (self.draw, self.read)]
        edits = [[e.source, e.target, e.instruction] for e in self.edits]
        return sha256_json([texts, turns, sizes, self.identity, *([edits] if edits else [])])

    def size(self, role: str) -> int:
        """Number of samples of a role; ValueError where the data has none."""
        held = {
            "draw": self.draw,
            "read": self.read,
            "text": self.text_conversations,
            "edit": self.edits,
        }[role]
        if not held:
            raise ValueError(f"the recipe has a task that needs {role!r} data, but none was given")
        return len(held)

    def features(self, role: str, indices: Sequence[int]) -> Features:
        """Cached rows of the role's images."""
        rows = {"draw": self.draw, "read": self.read, "edit": self.edit}[role]
        assert rows is not None, f"size({role!r}) is asked first"
        return rows.rows(indices)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of `draw` images."""
        if not self.draw_captions:
            raise ValueError("the task t2i needs captions, but the data set has none")
        return [self.draw_captions[index] for index in indices]

    def conversations(self, role: str, indices: Sequence[int]) -> list[Sequence[Conversation]]:
        """All conversations of each sample."""
        held = self.read_conversations if role == "read" else self.text_conversations
        if not held:
            raise ValueError(
                f"the recipe needs conversations for {role!r}, but the data set has none"
            )
        return [held[index] for index in indices]

    def edits_of(self, indices: Sequence[int]) -> list[EditRows]:
        """Edits; `size("edit")` is asked first."""
        return [self.edits[index] for index in indices]


def _same_length(name: str, texts: Sequence[object], rows: FeatureRows | None) -> None:
    if texts and (rows is None or len(texts) != len(rows)):
        images = 0 if rows is None else len(rows)
        raise ValueError(
            f"{name} has {len(texts)} entries for {images} cached images; join them by id"
        )


# ---- samples of a step -------------------------------------------------------------------------
def samples(
    size: int,
    role: str,
    recipe: Recipe,
    batch: int,
    at: tuple[int, int],
    *,
    seed: int,
    processes: ProcessGroup,
) -> list[int]:
    """Indices of micro-batch `at` = (step, micro) on this rank: (batch,) out of `size`.

    A step takes consecutive positions of an endless stream of permutations, dealt out to the ranks.
    """
    step, micro = at
    before = (step * recipe.accumulation + micro) * batch * processes.size
    if recipe.order == "published":
        positions = range(before + processes.rank, before + batch * processes.size, processes.size)
        return published_order(size, seed, positions)
    cursor = Cursor(seed_of(seed, "order", role), before)
    return cursor.take(size, batch, processes.rank, processes.size)[0]


# ---- micro-batches -------------------------------------------------------------------------------------------
def plan_step(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    step: int,
    processes: ProcessGroup,
) -> list[MicroBatch]:
    """All micro-batches of this rank's step, without features: texts, draws and token counts come first.

    The loss of a step is divided by the tokens of the whole step, so the counts must be known before the
    first backward pass.
    """
    return [
        _plan(model, data, recipe, task, micro, seed=seed, step=step, processes=processes)
        for task in recipe.active()
        for micro in range(recipe.accumulation)
    ]


def _plan(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    task: str,
    micro: int,
    *,
    seed: int,
    step: int,
    processes: ProcessGroup,
) -> MicroBatch:
    role, batch = ROLE[task], recipe.tasks[task].batch
    at = (step, micro)
    indices = samples(data.size(role), role, recipe, batch, at, seed=seed, processes=processes)

    def drawn_for(purpose: str) -> torch.Generator:
        return generator(seed, step, processes.rank, f"{role}/{micro}/{purpose}")

    if task == "edit":
        edits = data.edits_of(indices)
        noise = editor(model).sample_edit_noise(batch, drawn_for("draws"))
        return MicroBatch(
            task,
            [edit.target for edit in edits],
            noise.count,
            texts=[edit.instruction for edit in edits],
            noise=noise,
            sources=[edit.source for edit in edits],
        )
    if role != "draw":
        found = data.conversations(role, indices)
        turns = pick_turns(found, recipe.turns_per_sample, drawn_for("turns"))
        conversation = model.conversation(turns, with_image=role == "read")
        conversation = model.with_noise(conversation, drawn_for("draws"))
        return MicroBatch(task, indices, conversation.count, conversation=conversation)
    if task == "t2i":
        texts = data.captions(indices)
    else:
        texts = pick_prompts(data.prompts, batch, recipe.prompt_per, drawn_for("prompt"))
    shuffle = recipe.shuffle_condition and task == "reca"
    partner = derangement(batch, drawn_for("shuffle")) if shuffle else None
    noise = model.sample_noise(batch, drawn_for("draws"))
    count = model.loss_count(noise, with_image=task == "reca")
    return MicroBatch(task, indices, count, texts=texts, noise=noise, partner=partner)


def pick_prompts(prompts: Sequence[str], batch: int, per: str, drawn: torch.Generator) -> list[str]:
    """Reconstruction prompts, uniform over the bank: one per sample, or one for the micro-batch."""
    if not prompts:
        raise ValueError("the task reca needs reconstruction prompts, but the bank is empty")
    chosen = torch.randint(
        len(prompts), (batch if per == "sample" else 1,), generator=drawn
    ).tolist()
    return [prompts[index] for index in (chosen if per == "sample" else chosen * batch)]


def pick_turns(
    found: Sequence[Sequence[Conversation]], most: int | None, drawn: torch.Generator
) -> list[list[tuple[str, str]]]:
    """One conversation per sample, and `most` of its turns in their order (all where None)."""
    picked = []
    for conversations in found:
        which = int(torch.randint(len(conversations), (1,), generator=drawn))
        turns = list(conversations[which])
        kept = torch.randperm(len(turns), generator=drawn)[: most or len(turns)]
        picked.append([turns[index] for index in sorted(kept.tolist())])
    return picked


def with_features(batch: MicroBatch, data: TaskData, device: torch.device) -> MicroBatch:
    """The micro-batch with its cached rows on `device`; the task text has none."""
    if batch.task == "text":
        return batch

    def moved(indices: Sequence[int]) -> Features:
        rows = data.features(ROLE[batch.task], indices)
        return {name: row.to(device, non_blocking=True) for name, row in rows.items()}

    source = moved(batch.sources) if batch.sources else {}
    return replace(batch, features=moved(batch.indices), source=source)
