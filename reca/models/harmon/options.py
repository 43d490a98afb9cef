"""What Harmon's published training leaves to choose, and the whole `network` section of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reca_kernels import Implementation

from reca.core import structure
from reca.models.harmon.config import HarmonConfig
from reca.models.harmon.vae import Drawing


@dataclass(frozen=True)
class HarmonOptions:
    """What the published training leaves to choose; the defaults are the published recipe (harmon.md e, g).

    `text_dropout`: share of drawing samples whose text becomes "Generate an image."; `dropout_hides_image`: such a
    RecA sample also loses its picture (published: it keeps it). `condition_gradient`: factor on the gradient into
    the understanding embeddings. `frozen_condition`: RecA reads embeddings that were computed once, which is
    another algorithm. `leading_newline`: RecA prompts open with a newline, so the picture stands behind it.
    `drawing`: how a picture becomes square for drawing: stretched (RecA), cropped or padded. `max_text`: tokens of
    a conversation before the picture is put in. `encode_batch`: pictures per pass of the VAE.
    `implementation`: of the answers' loss, as `reca_kernels` names them.
    """

    text_dropout: float = 0.1
    dropout_hides_image: bool = False
    condition_gradient: float = 0.1
    frozen_condition: bool = False
    leading_newline: bool = True
    drawing: Drawing = "stretch"
    max_text: int = 1472
    encode_batch: int = 16
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(
                f"network.options.text_dropout is {self.text_dropout}; it must be in 0..1"
            )
        if self.condition_gradient < 0:
            raise ValueError(
                f"network.options.condition_gradient is {self.condition_gradient}; it must not be negative"
            )
        for name in ("max_text", "encode_batch"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"network.options.{name} is {getattr(self, name)}; it must be at least 1"
                )

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> HarmonOptions:
        """Build from plain data; ValueError names a key or value that does not fit."""
        return structure.build(cls, described, "network.options")


def parse(network: Mapping[str, Any]) -> tuple[HarmonConfig, HarmonOptions]:
    """Read a `network` section: the keys of `HarmonConfig`, and `options` with those of `HarmonOptions`.

    ValueError names a key or value that does not fit.
    """
    described = dict(network)
    options = HarmonOptions.from_dict(described.pop("options", {}))
    return HarmonConfig.from_dict(described), options
