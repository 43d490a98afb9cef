"""Separate training of vision towers: images are matched to dense captions with SigLIP's pairwise sigmoid loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT_LAYERS = 2
MAX_CAPTION = 48
FIRST_SCALE, FIRST_BIAS = 2.3, -10.0  # SigLIP's: temperature log 10, bias -10


def caption_ids(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Captions as ids [B, MAX_CAPTION], ended by the end token and padded with the first id after the vocabulary."""
    rows = [[*tokenizer(caption)["input_ids"], tokenizer.eos_token_id] for caption in captions]
    longest = max(map(len, rows))
    if longest > MAX_CAPTION:
        raise ValueError(
            f"a caption has {longest} tokens, the encoder supports {MAX_CAPTION}; raise MAX_CAPTION"
        )
    ids = torch.full((len(rows), MAX_CAPTION), len(tokenizer))
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
    return ids


class Matcher(nn.Module):
    """A vision tower with `states` [B, P, D] for pixels, and a small text tower to match, which is discarded later.

    `width` is D; the text tower has width `text_width`, `heads` heads, and `words` ids plus one for padding; the id
    `end` ends a caption.
    """

    def __init__(
        self,
        tower: nn.Module,
        states: Callable[[Any, Tensor], Tensor],
        *,
        width: int,
        text_width: int,
        heads: int,
        words: int,
        end: int,
    ) -> None:
        super().__init__()
        self.padding, self.states = words, states
        self.tower = tower
        self.words = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words + 1,  # one more for padding
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=TEXT_LAYERS,
                num_attention_heads=heads,
                max_position_embeddings=MAX_CAPTION,
                eos_token_id=end,
                bos_token_id=end,
                pad_token_id=words,
            )
        )
        self.picture = nn.Linear(width, text_width)
        self.caption = nn.Linear(text_width, text_width)
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Mean sigmoid loss over all pairs of images [B, 3, H, W] and captions [B, T]; matching pairs have label 1."""
        seen = F.normalize(self.picture(self.states(self.tower, pixels).mean(1)), dim=-1)
        read = self.words(input_ids=ids, attention_mask=ids.ne(self.padding).long()).pooler_output
        texts = F.normalize(self.caption(read), dim=-1)
        logits = seen @ texts.T * self.scale.exp() + self.bias
        signs = 2 * torch.eye(len(ids)) - 1
        return -F.logsigmoid(signs * logits).sum() / len(ids)
