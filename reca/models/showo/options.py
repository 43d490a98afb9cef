"""What Show-o's published training leaves to choose, and the whole `network` section of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reca_kernels import Implementation

from reca.models.common import options as common
from reca.models.showo.network import ShowoConfig


@dataclass(frozen=True)
class ShowoOptions:
    """What the published training leaves to choose; the defaults are the published recipe.

    `max_text_training`: M of the training layouts (CLIP recipe 576, VQ 381); None takes the
    network's `max_text`. `text_dropout`: share of text-to-image samples trained without their text.
    `t2i_boundary_tokens`: soi and eoi carry a text-to-image loss. `loss_vocab` `image` restricts
    drawing losses to the codebook. `reca_embedding_grad`: RecA trains the embeddings that it reads
    from (None: as published, only in the VQ variant). `trim`: drop columns that are pads in every
    row, which changes nothing but the cost. `encode_batch`: pictures per pass of the frozen
    encoders. `implementation`: of the losses and the attention, as `reca_kernels` names them.
    """

    max_text_training: int | None = None
    text_dropout: float = 0.1
    t2i_boundary_tokens: bool = True
    loss_vocab: Literal["full", "image"] = "full"
    reca_embedding_grad: bool | None = None
    trim: bool = True
    encode_batch: int = 32
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if self.loss_vocab == "image" and self.t2i_boundary_tokens:
            raise ValueError(
                "options.loss_vocab 'image' lacks soi and eoi; set t2i_boundary_tokens false"
            )
        common.check_positive("network.options", vars(self), "max_text_training", "encode_batch")
        common.check_shares("network.options", vars(self), "text_dropout")


def parse(network: Mapping[str, Any]) -> tuple[ShowoConfig, ShowoOptions]:
    """Read a `network` section: the keys of `ShowoConfig`, and `options` with those of `ShowoOptions`."""
    return common.parse(network, ShowoConfig, ShowoOptions)
