"""From prompts and images to what SANA attends to: embeddings, the queries' states, connector and projector.

Losses and the sampler share this room. Source: docs/reference/openuni.md b2, d and g. Letters: B batch, N tokens of an
image, Q queries, H width of the language model, D width of a condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reca.models.common.batching import padded
from reca.models.openuni.batch import Condition
from reca.models.openuni.config import OpenUniOptions
from reca.models.openuni.network import OpenUni, drop_rates


def conditions(
    network: OpenUni,
    options: OpenUniOptions,
    condition: Condition,
    depth: Tensor | None = None,
) -> Tensor:
    """What SANA attends to, [B, Q, D]; `depth` [layers, 2, B] uniform decides what the ViT drops."""
    ids, mask = padded(condition.texts, network.config.special.end)  # on the host
    with torch.no_grad():
        embeddings = network.embed(ids, understood(network, condition, depth))
    two_phases = options.step == "two_phase"
    return network.conditions(network.query_states(embeddings, mask, two_phases, options.recompute))


def understood(network: OpenUni, condition: Condition, depth: Tensor | None) -> Tensor | None:
    """The condition's understanding embeddings [B, N, H], from the cache or (stochastic depth) read anew."""
    if condition.pixels is None:
        return condition.understanding
    if depth is None:
        return network.read(condition.pixels)
    rates = torch.tensor(drop_rates(network.config))
    return network.read(condition.pixels, depth >= rates[:, None, None])
