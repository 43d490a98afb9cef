"""The contract of a unified multimodal model: what RecA needs of a network, and no more (docs/architecture.md 3).

Letters used in shapes: B batch, T text tokens, N image tokens, L sequence, D width, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reca.models.registry import editing

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""Named tensors with one row per image. The cache stores exactly these; names are the family's own, but two are fixed:
`target` (what is drawn: image codes, latents or their moments) and `understanding` (what the reader saw). A family
whose reader is trained (Harmon) has no `understanding` to store: it stores what the reader starts from."""

Use = Literal["draw", "read", "edit"]
"""Why an image is encoded: `draw` (RecA / text-to-image: target, and the condition that RecA gives),
`read` (image-to-text) or `edit` (both sides of an edit). The official recipes prepare the image differently for each.
"""


@dataclass(frozen=True)
class Loss:
    """A sum of per-token losses (fp32 scalar, differentiable) and the number of tokens it runs over."""

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """The mean over tokens; 0 where no token carried a loss (never NaN)."""
        return self.total / max(self.count, 1)


class Counted(Protocol):
    """Anything that knows, before any forward pass, over how many tokens its loss will be averaged.

    Gradient accumulation needs this: micro-batch sums are divided by the count of the whole optimiser step.
    """

    @property
    def count(self) -> int:
        """Tokens that will carry a loss."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn from a condition; families add their own `options` (checked by the family).

    ValueError for numbers that no sampler can use: an infinite guidance or a NaN would still draw something.
    """

    guidance: float = 0.0
    steps: int = 16
    temperature: float = 1.0
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ValueError(
                f"sampling.guidance is {self.guidance}; it must be 0 or more, and finite"
            )
        if self.steps < 1:
            raise ValueError(f"sampling.steps is {self.steps}; it must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"sampling.temperature is {self.temperature}; it must be above 0, and finite"
            )


@dataclass(frozen=True)
class DecayGroups:
    """Parameter names by weight decay: `decay` gets the recipe's value, `no_decay` gets 0."""

    decay: tuple[str, ...]
    no_decay: tuple[str, ...]


@dataclass(frozen=True)
class MemoryProfile:
    """What one training sample asks of memory, in counts; `reca plan` turns it into bytes.

    `tokens` run with gradients through `layers` of `width` with gated or plain MLPs of `inner`. `prefix_tokens` run
    without, and keep `kept_width` values per token and layer (two-phase steps). `features`: values cached per picture.
    `head_rows` run behind all that through a head of `head_layers` modulated MLP blocks of `head_width`, at most
    `head_slice` at a time.
    """

    tokens: int
    layers: int
    width: int
    inner: int
    prefix_tokens: int = 0
    kept_width: int = 0
    features: int = 0
    head_rows: int = 0
    head_layers: int = 0
    head_width: int = 0
    head_slice: int = 0


class UnifiedModel(nn.Module, ABC):
    """A network that reads images and draws them, behind one face for cache, trainer, generation and benchmarks."""

    family: str
    neutral_guidance: ClassVar[float] = 1.0
    """The scale s at which guidance changes nothing, as in u + s (c - u). At 0 no family has any guidance."""

    # ---- frozen parts: what the cache stores --------------------------------------------------------------------
    @abstractmethod
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Run the frozen encoders on RGB pictures: no gradient, deterministic, the same row whatever the batch."""

    @abstractmethod
    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of all that changes `encode`: weights of the frozen parts, transforms, options (hex sha256)."""

    # ---- losses: pure functions of their arguments ----------------------------------------------------------------
    @abstractmethod
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Any:
        """What the generator is conditioned on: from text alone, or from text and understanding features (RecA)."""

    @abstractmethod
    def sample_noise(self, batch: int, generator: torch.Generator) -> Counted:
        """Every random number that one generation loss needs, drawn at the edge, on the CPU."""

    def loss_count(self, noise: Any, with_image: bool) -> int:
        """Tokens that `generation_loss` will run over, known before any forward pass.

        `with_image`: the condition carries understanding features (RecA). A family whose text-to-image loss covers
        more than what is drawn (Show-o's boundary tokens) overrides this.
        """
        return noise.count

    @abstractmethod
    def generation_loss(self, target: Features, condition: Any, noise: Any) -> Loss:
        """The loss the model draws with. RecA and text-to-image are this one function with two conditions."""

    @abstractmethod
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Counted:
        """Tokenise B conversations, each a list of (question, answer) turns, with labels on the answers only."""

    def with_noise(self, conversation: Any, generator: torch.Generator) -> Any:
        """The conversation with every random number that its loss needs, drawn at the edge, on the CPU.

        A family that trains its reader with dropout (Harmon) overrides this; for the others reading is not random.
        """
        return conversation

    @abstractmethod
    def answer_loss(self, conversation: Any, features: Features | None) -> Loss:
        """Image-to-text loss (text-to-text where `features` is None)."""

    # ---- inference ------------------------------------------------------------------------------------------------
    @abstractmethod
    def generate(
        self,
        condition: Any,
        unconditional: Any | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Draw one picture per row; row i takes its noise from `generators[i]` only, so batches do
        not change pictures.
        """

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError where this family cannot draw so, known before any training (`reca check`).

        A family with options of its own in `sampling.options` overrides this; by default nothing is refused.
        """

    # Not abstract: stages state how they draw.
    def default_sampling(self) -> Sampling:
        """How the family's authors draw: what `reca draw` does where a person says nothing else."""
        return Sampling()

    @abstractmethod
    def unconditional(self, batch: int) -> Any:
        """The condition that guidance pushes away from."""

    @abstractmethod
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row; `warn_of_cut` tells of those that had to end at `max_new_tokens`."""

    # ---- parameters and weights -----------------------------------------------------------------------------------
    @abstractmethod
    def trainable_parameters(self) -> list[str]:
        """Names (of `named_parameters`) that RecA trains; everything else must stay bitwise unchanged."""

    @abstractmethod
    def decay_groups(self) -> DecayGroups:
        """The family's published weight-decay groups over the trainable names."""

    # Not abstract: only `reca plan` asks, and it says where a family gives no estimate.
    def memory_profile(self) -> MemoryProfile | None:
        """Counts for an estimate of activation memory per RecA sample; None: the family gives none."""
        return None

    @abstractmethod
    def official_state(self) -> dict[str, Tensor]:
        """The released checkpoint's content under its official names (what `save` writes)."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Load a checkpoint (official layout or ours) strictly; ValueError names file, missing and unexpected names."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write all that `reca.models.registry.load_model(directory)` needs: safetensors under official
        names, config, tokenizer.
        """


# ---- capabilities that not every family has --------------------------------------------------------
@runtime_checkable
class Edits(Protocol):
    """A model that changes images as an instruction says."""

    def sample_edit_noise(self, batch: int, generator: torch.Generator) -> Counted:
        """Every random number that one edit loss needs."""
        ...

    def edit_loss(
        self, target: Features, source: Features, instructions: Sequence[str], noise: Any
    ) -> Loss:
        """The loss of `target` given `source` and instructions; rows come from `encode(images, "edit")`."""
        ...

    def edit(
        self,
        images: Sequence[Image],
        instructions: Sequence[str],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Edited images, one per row."""
        ...


@runtime_checkable
class ReadsSeveral(Protocol):
    """A model that answers questions about several images each."""

    def answer_about(
        self, questions: Sequence[str], pictures: Sequence[Features], max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers: `pictures[k]` has the k-th image of every question, row by row."""
        ...


def editor(model: UnifiedModel) -> Edits:
    """The model as one that edits; ValueError names the families that do."""
    if not isinstance(model, Edits):
        raise ValueError(
            f"family {model.family} generates and reads but cannot edit; use one of: {', '.join(editing())}"
        )
    return model


def reader_of_several(model: UnifiedModel) -> ReadsSeveral:
    """The model as one that reads several images per question; ValueError where it reads one."""
    if not isinstance(model, ReadsSeveral):
        raise ValueError(f"family {model.family} reads one image per question; use another model")
    return model


def warn_truncated(rows: Sequence[Sequence[int]], end: int) -> None:
    """Log how many rows of generated ids ran into their limit before they said `end`."""
    if cut := [len(row) for row in rows if end not in row]:
        _log.warning("%d of %d answers are cut at %d tokens", len(cut), len(rows), max(cut))


def reconstruction_loss(
    model: UnifiedModel, prompts: Sequence[str], features: Features, noise: Any
) -> Loss:
    """L_RecA = L_gen(f([prompt template, h_v(x)]), x): draw the image again from its own understanding embeddings.

    `features` rows come from `encode(images, "draw")`; source: paper eq. 3, docs/architecture.md 1.
    """
    return model.generation_loss(features, model.condition(prompts, features), noise)


def text_to_image_loss(
    model: UnifiedModel, captions: Sequence[str], features: Features, noise: Any
) -> Loss:
    """L_t2i: the same loss, the same target, conditioned on a caption instead of the image's own embeddings."""
    return model.generation_loss(features, model.condition(captions), noise)
