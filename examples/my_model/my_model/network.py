"""A language model over text and image codes, and frozen patches on both sides of it.

Letters: B batch, T text tokens, N image tokens, P values of a patch, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from reca.core.images import short_side_crop, to_images, to_tensor


@dataclass(frozen=True)
class Config:
    """Sizes: the keys of `network` in a model configuration."""

    resolution: int = 16
    patch: int = 4
    levels: int = 4  # of each colour; their cube is the number of image codes
    width: int = 64
    layers: int = 2
    heads: int = 2
    text_ids: int = 257


@dataclass(frozen=True)
class Options:
    """What changes no shape: the keys of `network.options`."""

    text_dropout: float = 0.1


class Network(nn.Module):
    """What RecA trains."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = {"vocab_size": config.text_ids, "hidden_size": config.width}
        sizes |= {"intermediate_size": 3 * config.width, "num_hidden_layers": config.layers}
        sizes |= {"num_attention_heads": config.heads, "num_key_value_heads": config.heads}
        self.llm = Qwen2Model(Qwen2Config(**sizes, use_cache=False))
        self.connector = nn.Linear(3 * config.patch**2, config.width)
        self.codes = nn.Embedding(config.levels**3 + 1, config.width)  # the last begins an image
        self.head = nn.Linear(config.width, config.levels**3)

    def forward(self, seen, ids, real, codes=None) -> Tensor:
        """States [B, T, D] of the text, or with `codes` [B, n] those of [begin, codes] [B, n + 1, D].

        `seen` [B, N, P] comes first, then text `ids` [B, T], right-padded, of which `real` count.
        """
        parts = [(self.llm.embed_tokens(ids), real)]
        if seen is not None:
            parts.insert(0, (self.connector(seen), real.new_ones(seen.shape[:2])))
        if codes is not None:
            begin = codes.new_full((len(codes), 1), self.codes.num_embeddings - 1)
            states = self.codes(torch.cat([begin, codes], dim=1))
            parts.append((states, real.new_ones(states.shape[:2])))
        inputs, mask = (torch.cat(one, dim=1) for one in zip(*parts, strict=True))
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = self.llm(inputs_embeds=inputs, attention_mask=mask.long(), position_ids=places)
        wanted = ids.shape[1] if codes is None else codes.shape[1] + 1
        return found.last_hidden_state[:, -wanted:]


class Patches(nn.Module):
    """Frozen: an image as patches, which the model sees, and as codes of plain colours."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.patch = config.resolution, config.patch
        colours = torch.cartesian_prod(*[torch.linspace(-1, 1, config.levels)] * 3)  # [codes, 3]
        self.codebook = nn.Parameter(colours.repeat_interleave(self.patch**2, dim=1), False)

    def values(self, images) -> Tensor:
        """Patches [B, N, P] in [-1, 1] of PIL images, cut to a square."""
        pixels = torch.stack([to_tensor(short_side_crop(image, self.size)) for image in images])
        rows = nn.functional.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)
        return rows.contiguous().to(self.codebook)

    def nearest(self, values: Tensor) -> Tensor:
        """Codes [B, N] of patches; row by row, so that a batch changes no rounding."""
        return torch.stack([torch.cdist(row, self.codebook).argmin(-1) for row in values])

    def pictures(self, codes: Tensor) -> list:
        """PIL images of codes [B, N]."""
        rows = self.codebook[codes].transpose(1, 2)
        return to_images(nn.functional.fold(rows, self.size, self.patch, stride=self.patch))
