"""The contract of a unified multimodal model: all that RecA needs from a network (docs/architecture.md 3).

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
"""Named tensors with one row per image, exactly what the cache stores. Names are chosen by the family, except two:
`target` (image codes, latents or their moments) and `understanding` (understanding embeddings). A family that trains
its vision encoder (Harmon) stores the encoder's input instead of `understanding`."""

ON_HOST = frozenset({"grid"})
"""Features that give sizes: they decide what is computed, so the trainer leaves them where they can be read."""

Use = Literal["draw", "read", "edit"]
"""Why an image is encoded: `draw` (RecA and text-to-image: target and RecA's condition), `read` (image-to-text) or
`edit` (source and target of an edit). The official recipes preprocess the image differently for each.
"""


@dataclass(frozen=True)
class Loss:
    """A sum of per-token losses (fp32 scalar, differentiable) and the number of tokens it runs over."""

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """The mean over tokens; 0 if no token has a loss (never NaN)."""
        return self.total / max(self.count, 1)


class Counted(Protocol):
    """Anything that knows the token count of its loss before the forward pass.

    Gradient accumulation needs this: micro-batch sums are divided by the count of the entire optimizer step.
    """

    @property
    def count(self) -> int:
        """Number of tokens with a loss."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; `options` are specific to the family, which checks them.

    ValueError for numbers that no sampler can use: infinite or NaN guidance would still produce an image.
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
    """The memory that one training sample needs, as counts; `reca plan` converts them to bytes.

    `tokens` run with gradients through `layers` of `width` with gated or plain MLPs of `inner`. `prefix_tokens` run
    without gradients and cache `kept_width` values per token and layer (two-phase steps). Afterwards `head_rows` run
    through a head of `head_layers` modulated MLP blocks of `head_width`, at most `head_slice` at a time.
    """

    tokens: int
    layers: int
    width: int
    inner: int
    prefix_tokens: int = 0
    kept_width: int = 0
    head_rows: int = 0
    head_layers: int = 0
    head_width: int = 0
    head_slice: int = 0


class UnifiedModel(nn.Module, ABC):
    """A network that understands and generates images; the interface for cache, trainer, generation and benchmarks."""

    family: str
    neutral_guidance: ClassVar[float] = 1.0
    """The scale s at which guidance changes nothing, as in u + s (c - u). At 0 no family has any guidance."""

    # ---- frozen parts: what the cache stores --------------------------------------------------------------------
    @abstractmethod
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Run the frozen encoders on RGB images: no gradient, deterministic, each row independent of its batch."""

    @abstractmethod
    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of everything that affects `encode`: frozen weights, transforms, options (hex sha256)."""

    # ---- losses: pure functions of their arguments ----------------------------------------------------------------
    @abstractmethod
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Any:
        """The generator's condition: text alone, or text and understanding features (RecA)."""

    @abstractmethod
    def sample_noise(self, batch: int, generator: torch.Generator) -> Counted:
        """Sample every random number of one generation loss, on the CPU; the loss itself is pure."""

    def loss_count(self, noise: Any, with_image: bool) -> int:
        """The token count of `generation_loss`, known before the forward pass.

        `with_image`: the condition has understanding features (RecA). A family whose text-to-image loss covers
        more than the image (Show-o's boundary tokens) overrides this.
        """
        count = getattr(noise, "count", None)
        if not isinstance(count, int):  # of a tuple or a list it is a method
            raise ValueError(
                f"what sample_noise of {type(self).__name__} gives, {type(noise).__name__}, needs an attribute count: "
                f"the number of tokens of the loss, not {count!r}"
            )
        return count

    @abstractmethod
    def generation_loss(self, target: Features, condition: Any, noise: Any) -> Loss:
        """The family's generation loss; RecA and text-to-image call it with different conditions."""

    @abstractmethod
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Counted:
        """Tokenise B conversations, each a list of (question, answer) turns, with labels only on the answers."""

    def with_noise(self, conversation: Any, generator: torch.Generator) -> Any:
        """The conversation with every random number of its loss, sampled on the CPU.

        A family that trains understanding with dropout (Harmon) overrides this; the others need no random numbers.
        """
        return conversation

    @abstractmethod
    def answer_loss(self, conversation: Any, features: Features | None) -> Loss:
        """Image-to-text loss (text-to-text if `features` is None)."""

    # ---- inference ------------------------------------------------------------------------------------------------
    longest_answer: ClassVar[int] = 128
    """Tokens after which an answer of a benchmark is truncated: the authors' limit where they state one."""

    @abstractmethod
    def generate(
        self,
        condition: Any,
        unconditional: Any | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Generate one image per row; row i takes its noise from `generators[i]` only, so images do
        not depend on the batch.
        """

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for settings that the family does not support, before any training (`reca check`).

        A family with `sampling.options` overrides this; by default everything is accepted.
        """

    # Not abstract: stages always pass their own settings.
    def default_sampling(self) -> Sampling:
        """The authors' sampling settings, which `reca draw` uses by default."""
        return Sampling()

    @abstractmethod
    def unconditional(self, batch: int) -> Any:
        """The unconditional condition of classifier-free guidance."""

    @abstractmethod
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row; `warn_truncated` logs how many were truncated at `max_new_tokens`."""

    # ---- parameters and weights -----------------------------------------------------------------------------------
    @abstractmethod
    def trainable_parameters(self) -> list[str]:
        """Names (of `named_parameters`) that RecA trains; all others must stay bitwise unchanged."""

    @abstractmethod
    def decay_groups(self) -> DecayGroups:
        """The family's published weight-decay groups over the trainable names."""

    # Not abstract: only `reca plan` needs it, and it reports families without an estimate.
    def memory_profile(self) -> MemoryProfile | None:
        """Counts for an estimate of activation memory per RecA sample; None if the family has no estimate."""
        return None

    @abstractmethod
    def official_state(self) -> dict[str, Tensor]:
        """The trained network's tensors under their official names, as written by `save`."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Load a checkpoint (official layout or ours) strictly; ValueError names the file and any mismatch."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write everything that `reca.models.registry.load_model(directory)` needs: safetensors under
        official names, config, tokenizer.
        """


# ---- capabilities that not every family has --------------------------------------------------------
@runtime_checkable
class Edits(Protocol):
    """A model that edits images by an instruction."""

    def sample_edit_noise(self, batch: int, generator: torch.Generator) -> Counted:
        """Sample every random number of one edit loss."""
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
        """Greedy answers; `pictures[k]` holds the k-th image of every question, row by row."""
        ...


def editor(model: UnifiedModel) -> Edits:
    """The model as `Edits`; ValueError lists the families that can edit."""
    if not isinstance(model, Edits):
        raise ValueError(
            f"family {model.family} generates and reads but cannot edit; use one of: {', '.join(editing())}"
        )
    return model


def reader_of_several(model: UnifiedModel) -> ReadsSeveral:
    """The model as `ReadsSeveral`; ValueError if it reads only one image per question."""
    if not isinstance(model, ReadsSeveral):
        raise ValueError(f"family {model.family} reads one image per question; use another model")
    return model


def warn_truncated(rows: Sequence[Sequence[int]], end: int) -> None:
    """Log how many rows of generated ids reached their limit without `end`."""
    if truncated := [len(row) for row in rows if end not in row]:
        _log.warning(
            "%d of %d answers are truncated at %d tokens", len(truncated), len(rows), max(truncated)
        )


def reconstruction_loss(
    model: UnifiedModel, prompts: Sequence[str], features: Features, noise: Any
) -> Loss:
    """L_RecA = L_gen(f([prompt template, h_v(x)]), x): generate the image from its own understanding embeddings.

    `features` rows come from `encode(images, "draw")`; source: paper eq. 3, docs/architecture.md 1.
    """
    return model.generation_loss(features, model.condition(prompts, features), noise)


def text_to_image_loss(
    model: UnifiedModel, captions: Sequence[str], features: Features, noise: Any
) -> Loss:
    """L_t2i: the same loss and target, conditioned on a caption instead of the image's own embeddings."""
    return model.generation_loss(features, model.condition(captions), noise)
