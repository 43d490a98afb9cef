"""The `network` section of a Janus-Pro: sizes and training options.

Source: docs/reference/janus.md a and b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reca_kernels import Implementation

from reca.core.structure import Count, Positive, Share
from reca.models.common import options as common

# The published system prompt of questions (janus.md b); two newlines follow it.
SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
_GROUPS = 32  # of every GroupNorm in the VQ model

Layout = Literal["official", "transformers"]
"""Names under which a checkpoint is saved; both can be loaded."""


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower; the defaults are SigLIP-Large with patches of 16 pixels."""

    hidden_size: Count = 1024
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 16
    patch_size: Count = 16
    mlp_ratio: Positive = 4.0


@dataclass(frozen=True)
class VqConfig:
    """The VQ model; the defaults are LlamaGen's VQ-16. `num_embeddings` K codes of `embed_dim` channels."""

    num_embeddings: Count = 16384
    embed_dim: Count = 8
    latent_channels: Count = 256
    base_channels: Count = 128
    channel_multiplier: tuple[Count, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: Count = 2

    @property
    def down_sampling(self) -> int:
        """Pixels per code and side."""
        return 2 ** (len(self.channel_multiplier) - 1)


@dataclass(frozen=True)
class JanusConfig:
    """All sizes of a Janus-Pro; the defaults are those of the 1B model.

    `llm` are keyword arguments of LlamaConfig. `head_width`: inner width of the generation head (None: that of the
    language model, as released). `system_prompt` precedes questions; text-to-image has none.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(LLAMA_1B))
    vision: VisionConfig = field(default_factory=VisionConfig)
    vq: VqConfig = field(default_factory=VqConfig)
    resolution: Count = 384
    head_width: Count | None = None
    system_prompt: str = SYSTEM_PROMPT

    def __post_init__(self) -> None:
        common.check_numbers("network.llm", self.llm, LLAMA_1B)
        # LlamaConfig has a key/value head for each head where their number is not given
        sizes = {name: LLAMA_1B[name] for name in ("hidden_size", "num_attention_heads")}
        common.check_attention("network.llm", sizes | self.llm, rotary=True)
        common.check_attention("network.vision", vars(self.vision))
        for name, size in {
            "vision.patch_size": self.vision.patch_size,
            "vq.channel_multiplier": self.vq.down_sampling,
        }.items():
            if self.resolution % size:
                raise ValueError(
                    f"network.resolution {self.resolution} is not a multiple of the {size} pixels of "
                    f"network.{name}; change one of them"
                )
        if self.vq.base_channels % _GROUPS:
            raise ValueError(
                f"network.vq.base_channels is {self.vq.base_channels}; it must be a multiple of {_GROUPS}"
            )

    # ---- derived sizes ---------------------------------------------------------------------------
    @property
    def width(self) -> int:
        """D: width of the language model."""
        return int((LLAMA_1B | self.llm)["hidden_size"])

    @property
    def grid(self) -> int:
        """Codes per side."""
        return self.resolution // self.vq.down_sampling

    @property
    def num_codes(self) -> int:
        """N: codes per generated image."""
        return self.grid**2

    @property
    def image_length(self) -> int:
        """P: understanding embeddings per input image."""
        return (self.resolution // self.vision.patch_size) ** 2


@dataclass(frozen=True)
class JanusOptions:
    """Training options; there is no published RecA recipe for Janus-Pro, so the defaults are our proposal (janus.md e).

    `condition_dropout`: share of samples, RecA's included, whose condition is replaced by pads as in the sampler's
    unconditional rows. `train_aligner`: train the layers between SigLIP and the language model. `max_text`:
    conversations are truncated to this many tokens, where an image counts as one. `encode_batch`: images per pass of
    the frozen encoders. `checkpoint_layout`: names under which a model is saved. `implementation` of the losses: see
    `reca_kernels`.
    """

    condition_dropout: Share = 0.1
    train_aligner: bool = True
    max_text: Count = 1024
    encode_batch: Count = 16
    checkpoint_layout: Layout = "official"
    implementation: Implementation = "auto"


def parse(network: Mapping[str, Any]) -> tuple[JanusConfig, JanusOptions]:
    """Parse a `network` section: the keys of `JanusConfig`, and `options` with those of `JanusOptions`."""
    return common.parse(network, JanusConfig, JanusOptions)
