"""Show-o's language model: Phi-1.5 with qk-LayerNorm over text and image codes, and the CLIP projector.

The frozen companions (MAGVIT-v2 in `magvit.py`, the CLIP tower in `clip.py`) are held by
`model.py`; `Showo` is exactly what a Show-o checkpoint stores.
Source: docs/reference/showo.md 1.1, 1.2, 1.4 and 6.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from reca_kernels import Implementation
from reca_kernels import Layout as BlockLayout
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.common.attention import KeyValueCache
from reca.models.common.batching import moved
from reca.models.showo import attention
from reca.models.showo.config import ShowoConfig
from reca.models.showo.phi import PhiForCausalLM

_BLOCKED = -(2.0**63)  # the official additive mask; finite, so a fully masked row stays finite


class Showo(nn.Module):
    """Show-o's trainable network under its released names: `showo.*`, for CLIP `mm_projector.*`."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = PhiForCausalLM(config.language, config.vocab_size)
        if config.understanding == "clip":
            self.mm_projector = _projector(config.projector)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings: ids [B, L] -> [B, L, D]."""
        return self.showo.model.embed_tokens(ids)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.showo.lm_head.weight.device

    def inputs(
        self, ids: Tensor, understanding: Tensor | None, clip_at: int | None = None
    ) -> Tensor:
        """Input embeddings [B, L, D] of ids [B, L]: tokens, and projected CLIP features in negative ids' place.

        `clip_at` is the first of these columns; without it the device is asked.
        """
        tokens = self.embed(ids.clamp(min=0))
        if understanding is None or self.config.understanding != "clip":
            return tokens
        start = int((ids[0] < 0).nonzero()[0]) if clip_at is None else clip_at
        clip = self.project(moved(understanding, tokens.device, tokens.dtype))
        return torch.cat([tokens[:, :start], clip, tokens[:, start + clip.shape[1] :]], dim=1)

    def project(self, clip_features: Tensor) -> Tensor:
        """Project CLIP patch features [B, P, Dclip] into the embedding space, [B, P, D]."""
        return self.mm_projector(clip_features)

    def hidden(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        allowed: Tensor | None = None,
        blocks: BlockLayout | None = None,
        implementation: Implementation = "auto",
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] after the final LayerNorm, of ids [B, L] or embeddings [B, L, D].

        `allowed[b, q, k]` (bool, [B, L, K] or [B, 1, L, K]) says that query q may attend to key k;
        K = L, plus the length of the cache where one is given (extended in place).
        Without a cache the mask may be given as `blocks` instead, per token, and then
        `reca_kernels.block_attention` runs, by the named implementation.
        `position_ids` [B, L] default to those that follow the cache: pads take positions too
        (showo.md 1.1). A row that may attend to nothing gives finite junk.
        """
        if (allowed is None) == (blocks is None):
            raise ValueError("Showo.hidden needs the mask once: as allowed or as blocks")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        if blocks is not None:
            how = attention.blockwise(blocks, implementation)
        else:
            assert allowed is not None
            how = attention.dense(additive_mask(allowed, inputs_embeds.dtype))
        return self.showo.model(inputs_embeds, position_ids, how, cache)

    def head(self, hidden: Tensor, vocab: slice | None = None) -> Tensor:
        """Logits of hidden states [..., D] over the vocabulary or a slice of it (`ids.codes`)."""
        lm_head = self.showo.lm_head
        if vocab is None:
            return lm_head(hidden)
        return F.linear(hidden, lm_head.weight[vocab], lm_head.bias[vocab])


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask [B, L, K] or [B, 1, L, K] as an additive one [B, 1, L, K], 0 where allowed."""
    if allowed.dtype != torch.bool or allowed.dim() not in (3, 4):
        raise ValueError(
            "allowed must be bool [B, L, K] or [B, 1, L, K], "
            f"not {allowed.dtype} {list(allowed.shape)}"
        )
    allowed = allowed.unsqueeze(1) if allowed.dim() == 3 else allowed
    blocked = max(_BLOCKED, torch.finfo(dtype).min)  # float16 cannot represent the official value
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, blocked
    )


def _projector(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with exact GELUs between them; two layers have the released names 0 and 2."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])
