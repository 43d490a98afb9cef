"""Janus-Pro's losses as pure functions of network, options, target, condition and noise.

Source: docs/reference/janus.md d and e. Letters: B batch, L sequence, N codes, P embeddings of an image, W their width,
D width of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.models.common.batching import moved, with_targets
from reca.models.contract import Loss
from reca.models.janus import layout as layouts

if TYPE_CHECKING:
    from reca.models.janus.batch import Condition, Conversation, DropoutNoise
    from reca.models.janus.config import JanusOptions
    from reca.models.janus.network import Janus


def generation_loss(
    network: Janus,
    options: JanusOptions,
    codes: Tensor,
    condition: Condition,
    noise: DropoutNoise,
) -> Loss:
    """Next-token cross-entropy (fp32) over the codebook, summed over all codes [B, N] (janus.md d).

    Only the states that predict codes pass through the head, and logits are never stored.
    """
    codes = moved(codes, network.device).long()
    head = network.generation_head.vision_head
    total = linear_cross_entropy(
        network.code_features(code_states(network, options, codes, condition, noise)),
        head.weight,
        codes,
        head.bias,
        reduction="sum",
        all_valid=True,
        implementation=options.implementation,
    )
    return Loss(total, noise.count)


def code_states(
    network: Janus,
    options: JanusOptions,
    codes: Tensor,
    condition: Condition,
    noise: DropoutNoise,
) -> Tensor:
    """Final states [B, N, D] that predict codes [B, N], after condition dropout."""
    config = network.config
    dropped = (noise.condition_dropout < options.condition_dropout).tolist()
    rows = [
        layouts.without_condition(row, condition.pad, config.image_length) if drop else row
        for row, drop in zip(condition.texts, dropped, strict=True)
    ]
    read = condition.understanding
    if read is not None and any(dropped):
        kept = torch.tensor([i for i, drop in enumerate(dropped) if not drop], dtype=torch.long)
        read = read[moved(kept, read.device)]
    sequences = layouts.generation(rows, config.image_length, codes.shape[1])
    hidden = network.hidden(network.inputs(sequences.ids, read, codes[:, :-1]))
    index = moved(sequences.states, network.device).unsqueeze(-1)
    return hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))


def answer_loss(
    network: Janus,
    options: JanusOptions,
    conversation: Conversation,
    understanding: Tensor | None,
) -> Loss:
    """Next-token cross-entropy (fp32) on answers, with or without images (SigLIP features [B, P, W]) (janus.md e).

    Only the states that predict tokens of answers pass through the head.
    """
    ids, targets = layouts.conversation(
        conversation.ids, conversation.labels, network.config.image_length
    )
    hidden = network.hidden(network.inputs(ids, understanding))[:, :-1]
    said, labels = with_targets(hidden, targets)
    total = linear_cross_entropy(
        said,
        network.language_model.lm_head.weight,
        labels,
        reduction="sum",
        all_valid=True,
        implementation=options.implementation,
    )
    return Loss(total, conversation.count)
