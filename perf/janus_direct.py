"""Janus-Pro's published sampling loop, transcribed: what `janus_sampler` measures against.

As docs/reference/janus.md d and g write it: one prompt at a time, its conditional and unconditional rows in turns
(c, u, c, u), keys and values that grow by concatenation, the whole of transformers' LlamaModel in every step. It shares
weights and modules with the package, none of what the package does to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from reca.models.janus.network import Janus
from reca.models.janus.sampler import Choose


class Direct:
    """The loop for `images` images of one prompt; `rows` are its conditional and its unconditional ids [P]."""

    def __init__(self, network: Janus, rows: tuple[Tensor, Tensor], images: int) -> None:
        self.network, self.cache = network, DynamicCache()
        ids = torch.stack([*rows] * images)
        self.hidden = self._run(network.embed(ids))

    def logits(self, guidance: float) -> Tensor:
        """Guided logits [B, K] at the last column."""
        found = self.network.generation_head(self.hidden[:, -1])
        conditional, unconditional = found[0::2], found[1::2]
        return unconditional + guidance * (conditional - unconditional)

    def feed(self, codes: Tensor) -> None:
        """Run the language model on codes [B, S] of both rows of each image."""
        both = torch.stack([codes, codes], dim=1).flatten(0, 1)
        embedded = self.network.generation_aligner(self.network.generation_embeddings(both))
        self.hidden = self._run(embedded)

    def step(self, guidance: float, choose: Choose, number: int) -> Tensor:
        """Choose the codes [B] of a step and feed them."""
        codes = choose(number, self.logits(guidance))
        self.feed(codes.unsqueeze(1))
        return codes

    def back(self, columns: int, hidden: Tensor) -> None:
        """Forget the last columns, so that a step can be measured again."""
        self.cache.crop(-columns)
        self.hidden = hidden

    def _run(self, embeddings: Tensor) -> Tensor:
        llama = self.network.language_model.model
        output = llama(inputs_embeds=embeddings, past_key_values=self.cache, use_cache=True)
        return output.last_hidden_state
