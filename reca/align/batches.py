"""The samples of a step, and every random choice about them, as pure functions of (seed, step, rank).

Nothing here has state, so resuming or changing the number of micro-batches needs no bookkeeping.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from reca.align.distributed import ProcessGroup
from reca.align.objective import MicroBatch, derangement
from reca.config.recipe import ROLE_OF, Recipe
from reca.core.artifacts import sha256_json
from reca.core.rng import generator, seed_of
from reca.data.order import Cursor, published_order
from reca.data.prefetch import in_order
from reca.data.role import Role, stream_of
from reca.models.common.batching import moved, pinned
from reca.models.contract import ON_HOST, Features, UnifiedModel, editor

Conversation = Sequence[tuple[str, str]]
"""(question, answer) turns about one image."""


@dataclass(frozen=True)
class EditRows:
    """One edit: the cache rows of the source and target images, and the instruction."""

    source: int
    target: int
    instruction: str


class FeatureRows(Protocol):
    """Cached features of a data set (`reca.features.build`)."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> Features:
        """Features of the given rows, in this order."""


class TaskData(Protocol):
    """The trainer's data: pure lookups, without any order or randomness."""

    @property
    def prompts(self) -> Sequence[str]:
        """The bank of reconstruction prompts."""

    def fingerprint(self) -> str:
        """Hash of everything that the lookups below can return."""

    def size(self, role: Role) -> int:
        """Number of samples of a role."""

    def features(self, role: Role, indices: Sequence[int]) -> Features:
        """Cached features of these rows."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of the images to reconstruct."""

    def conversations(self, role: Role, indices: Sequence[int]) -> list[Sequence[Conversation]]:
        """All conversations of each sample of role `answer` or `text`."""

    def edits_of(self, indices: Sequence[int]) -> list[EditRows]:
        """Edits, whose rows refer to the images of `edit`."""


@dataclass(frozen=True)
class Places:
    """Which samples of a data set of `size` a cache holds: their `positions`, ascending."""

    size: int
    positions: Sequence[int]

    def rows(self, samples: Sequence[int]) -> list[int]:
        """The row of each sample; that of the next cached one, cyclically, where it was unreadable."""
        return [bisect_left(self.positions, sample) % len(self.positions) for sample in samples]


@dataclass(frozen=True)
class FeatureData:
    """Feature caches joined with their texts: row i of a cache belongs to entry i of the lists.

    `draw` serves reca (with `prompts`) and t2i (with `draw_captions`); `read` serves i2t (with
    `read_conversations`, one or more per image); `text_conversations` serve the task text; `edits` point into the
    images of `edit`. Where a cache holds only the images that the run reads, `places` has its place in the data set.
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
    """Hashes that identify the caches (such as of their manifests); resuming with others is refused."""
    places: Mapping[Role, Places] = field(default_factory=dict)

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
        """Hash of all texts, the sizes and `identity`."""
        texts = [list(self.prompts), list(self.draw_captions)]
        turns = [list(self.read_conversations), list(self.text_conversations)]
        sizes = [len(rows) if rows is not None else None for rows in (self.draw, self.read)]
        edits = [[e.source, e.target, e.instruction] for e in self.edits]
        return sha256_json([texts, turns, sizes, self.identity, *([edits] if edits else [])])

    def size(self, role: Role) -> int:
        """Number of samples of a role, cached or not; ValueError if there are none."""
        stored = {
            Role.RECONSTRUCT: self.draw,
            Role.ANSWER: self.read,
            Role.TEXT: self.text_conversations,
            Role.EDIT: self.edits,
        }[role]
        if not stored:
            raise ValueError(
                f"the recipe has a task that needs data of role '{role}', but there is none"
            )
        return self.places[role].size if role in self.places else len(stored)

    def _rows(self, role: Role, indices: Sequence[int]) -> Sequence[int]:
        """The rows of these samples."""
        return self.places[role].rows(indices) if role in self.places else indices

    def features(self, role: Role, indices: Sequence[int]) -> Features:
        """Cached features of these rows."""
        caches = {Role.RECONSTRUCT: self.draw, Role.ANSWER: self.read, Role.EDIT: self.edit}
        rows = caches[role]
        assert rows is not None, f"size({role!r}) is checked first"
        return rows.rows(self._rows(role, indices))

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of the images to reconstruct."""
        if not self.draw_captions:
            raise ValueError("the task t2i needs captions, but the data set has none")
        return [self.draw_captions[row] for row in self._rows(Role.RECONSTRUCT, indices)]

    def conversations(self, role: Role, indices: Sequence[int]) -> list[Sequence[Conversation]]:
        """All conversations of each sample."""
        stored = self.read_conversations if role is Role.ANSWER else self.text_conversations
        if not stored:
            raise ValueError(
                f"the recipe needs conversations in data of role '{role}', but the data set has none"
            )
        return [stored[row] for row in self._rows(role, indices)]

    def edits_of(self, indices: Sequence[int]) -> list[EditRows]:
        """The edits of the given rows; `size(Role.EDIT)` is checked first."""
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
    stream: str,
    recipe: Recipe,
    batch: int,
    at: tuple[int, int],
    *,
    seed: int,
    processes: ProcessGroup,
) -> list[int]:
    """Indices, out of `size`, of micro-batch `at` = (step, micro) on this rank: shape (batch,).

    `stream` keys the order of the data.
    A step takes consecutive positions of an endless stream of permutations, split among the ranks.
    """
    step, micro = at
    before = (step * recipe.accumulation + micro) * batch * processes.size
    if recipe.order == "published":
        positions = range(before + processes.rank, before + batch * processes.size, processes.size)
        return published_order(size, seed, positions)
    cursor = Cursor(seed_of(seed, "order", stream), before)
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
    """All micro-batches of this rank's step, without features: texts, noise and token counts.

    The loss is divided by the token count of the entire step, which must be known before the first
    backward pass.
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
    role, batch = ROLE_OF[task], recipe.tasks[task].batch
    stream = stream_of(role)
    at = (step, micro)
    indices = samples(data.size(role), stream, recipe, batch, at, seed=seed, processes=processes)

    def generator_for(purpose: str) -> torch.Generator:
        return generator(seed, step, processes.rank, f"{stream}/{micro}/{purpose}")

    if task == "edit":
        edits = data.edits_of(indices)
        noise = editor(model).sample_edit_noise(batch, generator_for("draws"))
        return MicroBatch(
            task,
            [edit.target for edit in edits],
            noise.count,
            texts=[edit.instruction for edit in edits],
            noise=noise,
            sources=[edit.source for edit in edits],
        )
    if role is not Role.RECONSTRUCT:
        candidates = data.conversations(role, indices)
        turns = pick_turns(candidates, recipe.turns_per_sample, generator_for("turns"))
        conversation = model.conversation(turns, with_image=role is Role.ANSWER)
        conversation = model.with_noise(conversation, generator_for("draws"))
        return MicroBatch(task, indices, conversation.count, conversation=conversation)
    if task == "t2i":
        texts = data.captions(indices)
    else:
        texts = pick_prompts(data.prompts, batch, recipe.prompt_per, generator_for("prompt"))
    shuffle = recipe.shuffle_condition and task == "reca"
    partner = derangement(batch, generator_for("shuffle")) if shuffle else None
    noise = model.sample_noise(batch, generator_for("draws"))
    ablation = recipe.ablation if task == "reca" else None
    with_image = task == "reca" and ablation != "template_only"
    count = model.loss_count(noise, with_image=with_image)
    return MicroBatch(
        task, indices, count, texts=texts, noise=noise, partner=partner, ablation=ablation
    )


def pick_prompts(
    prompts: Sequence[str], batch: int, per: str, generator: torch.Generator
) -> list[str]:
    """Reconstruction prompts, uniform over the bank: one per sample, or one for the micro-batch."""
    if not prompts:
        raise ValueError("the task reca needs reconstruction prompts, but the bank is empty")
    chosen = torch.randint(
        len(prompts), (batch if per == "sample" else 1,), generator=generator
    ).tolist()
    return [prompts[index] for index in (chosen if per == "sample" else chosen * batch)]


def pick_turns(
    candidates: Sequence[Sequence[Conversation]], most: int | None, generator: torch.Generator
) -> list[list[tuple[str, str]]]:
    """One conversation per sample, limited to `most` of its turns in order (None: all)."""
    picked = []
    for conversations in candidates:
        choice = int(torch.randint(len(conversations), (1,), generator=generator))
        turns = list(conversations[choice])
        kept = torch.randperm(len(turns), generator=generator)[: most or len(turns)]
        picked.append([turns[index] for index in sorted(kept.tolist())])
    return picked


def prepared_steps(
    model: UnifiedModel,
    data: TaskData,
    recipe: Recipe,
    steps: Iterable[int],
    *,
    seed: int,
    processes: ProcessGroup,
) -> Generator[list[MicroBatch]]:
    """The micro-batches of these steps with their cached rows, read by a thread while earlier steps are computed."""

    def prepare(step: int) -> list[MicroBatch]:
        plan = plan_step(model, data, recipe, seed=seed, step=step, processes=processes)
        return [with_rows(batch, data, processes.device) for batch in plan]

    return in_order(prepare, iter(steps), workers=1)


def with_rows(batch: MicroBatch, data: TaskData, device: torch.device) -> MicroBatch:
    """The micro-batch with its cached rows in host memory, pinned for a GPU; the task text has none."""
    if batch.task == "text":
        return batch

    def read(indices: Sequence[int]) -> Features:
        rows = data.features(ROLE_OF[batch.task], indices)
        return {name: row if name in ON_HOST else pinned(row, device) for name, row in rows.items()}

    source = read(batch.sources) if batch.sources else {}
    return replace(batch, features=read(batch.indices), source=source)


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its cached rows on `device`, sizes excepted."""

    def sent(rows: Features) -> Features:
        return {name: row if name in ON_HOST else moved(row, device) for name, row in rows.items()}

    return replace(batch, features=sent(batch.features), source=sent(batch.source))
