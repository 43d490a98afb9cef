"""Janus-Pro's trained network: a Llama, the aligner of SigLIP's features, and embeddings and head of image codes.

The frozen SigLIP and VQ model are in `encoders.py`. All modules are those of transformers'
`JanusForConditionalGeneration`. Source: docs/reference/janus.md a, c and d. Letters: B batch, L sequence, P embeddings
of an image, N codes, D width, W width of SigLIP, K codebook size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import (
    JanusVisionAlignerMLP,
    JanusVQVAEAlignerMLP,
    JanusVQVAEHead,
)
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from reca.models.common.batching import moved
from reca.models.janus.config import JanusConfig
from reca.models.janus.layout import CODE, IMAGE


class Janus(nn.Module):
    """The modules that RecA can train; a released checkpoint also contains the frozen ones."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.config = config
        vq, width = config.vq, config.width
        self.language_model = LlamaForCausalLM(
            LlamaConfig(tie_word_embeddings=False, use_cache=False, **config.llm)
        )
        self.language_model.set_attn_implementation("sdpa")
        self.aligner = JanusVisionAlignerMLP(
            JanusVisionConfig(hidden_size=config.vision.hidden_size, projection_dim=width)
        )
        sizes: dict[str, Any] = {"embed_dim": vq.embed_dim, "num_embeddings": vq.num_embeddings}
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(
            JanusVQVAEConfig(projection_dim=width, **sizes)
        )
        self.generation_head = JanusVQVAEHead(
            JanusVQVAEConfig(
                image_token_embed_dim=width, projection_dim=config.head_width or width, **sizes
            )
        )

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.generation_head.vision_head.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [B, L, D] of ids [B, L]; placeholders, which are negative, are embedded as id 0."""
        return self.language_model.model.embed_tokens(ids.clamp(min=0))

    def embed_codes(self, codes: Tensor) -> Tensor:
        """g(y): input embeddings [..., D] of codes [...] (janus.md d)."""
        return self.generation_aligner(self.generation_embeddings(codes))

    def inputs(
        self, ids: Tensor, understanding: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Input embeddings [B, L, D] of ids [B, L], with image and code embeddings at their placeholders.

        `ids` are on the CPU. `understanding` [B', P, W]: SigLIP features of the B' rows with an image, in order;
        `codes` [B, N']: codes whose embeddings are inputs.
        """
        embeddings = self.embed(moved(ids, self.device))
        if understanding is not None:
            dtype = self.aligner.fc1.weight.dtype
            seen = self.aligner(moved(understanding, self.device, dtype))
            embeddings = _put(embeddings, ids == IMAGE, seen)
        if codes is not None:
            embeddings = _put(embeddings, ids == CODE, self.embed_codes(codes))
        return embeddings

    def hidden(self, embeddings: Tensor) -> Tensor:
        """Final hidden states [B, L, D] of input embeddings [B, L, D] under causal attention; padding is on the right.

        Calls the layers itself, because LlamaModel reads positions from the device to detect packed sequences.
        """
        llama: Any = self.language_model.model
        places = torch.arange(embeddings.shape[1], device=embeddings.device).unsqueeze(0)
        rotary, hidden = llama.rotary_emb(embeddings, places), embeddings
        for layer in llama.layers:
            hidden = layer(hidden, position_embeddings=rotary)
        return llama.norm(hidden)

    def code_features(self, hidden: Tensor) -> Tensor:
        """Inputs [..., head width] of the generation head's last layer, from states [..., D]."""
        head = self.generation_head
        return head.activation_fn(head.proj_out(hidden))

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., K] of image codes from states [..., D]."""
        return self.generation_head(hidden)


def _put(embeddings: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Embeddings [B, L, D] with values [B', n, D] at `places` [B, L] (bool, on the CPU), in row-major order."""
    index = tuple(moved(i, embeddings.device) for i in places.nonzero(as_tuple=True))
    return embeddings.index_put(index, values.flatten(0, 1).to(embeddings.dtype))
