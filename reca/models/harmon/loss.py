"""Harmon's losses as pure functions of network, options, target, condition and noise.

Source: docs/reference/harmon.md c, d1, d2 and e. Letters: B batch, L latents of an image, K masked ones,
S buffers, C channels, D width of the head's conditions, H width of the language model.
"""

from __future__ import annotations

import torch
from reca_kernels import Implementation, linear_cross_entropy
from torch import Tensor

from reca.models.common.batching import moved, padded, with_targets
from reca.models.common.tokenizer import IGNORE
from reca.models.contract import Loss
from reca.models.harmon import layout as layouts
from reca.models.harmon.batch import Condition, Conversation, DiffusionNoise
from reca.models.harmon.config import HarmonOptions
from reca.models.harmon.diffusion import SLICE
from reca.models.harmon.network import Harmon, condition_image, embed_prompts, read_image


def generation_loss(
    network: Harmon,
    options: HarmonOptions,
    target: Tensor,
    condition: Condition,
    noise: DiffusionNoise,
) -> Loss:
    """Noise error and variational bound on the masked tokens, `repeats` noise samples each, in fp32 (harmon.md d1, d2).

    `target` [B, m, n, C] are latents.
    """
    device = network.device
    latents = moved(target, device).float().flatten(1, 2)  # [B, L, C]
    hidden, _ = layouts.places(noise.orders, noise.masked)
    z = token_conditions(network, options, latents, condition, noise)
    rows = _loss_rows(hidden, noise, device)
    own = rows % latents.shape[:2].numel()  # repeats share target and condition
    mse, vb = network.mar.diffloss.losses(
        latents.flatten(0, 1)[own],
        z.flatten(0, 1)[own],
        moved(noise.t, device)[rows],
        moved(noise.gaussian, device)[rows],
        slices=-(-len(noise.t) // SLICE),  # by all rows: ranks mask unequal numbers of them
    )
    return Loss((mse + vb).sum(), len(rows))


def _loss_rows(hidden: Tensor, noise: DiffusionNoise, device: torch.device) -> Tensor:
    """Flat indices, into [repeats, B, L], of the rows with a loss, given hidden positions [B, K]."""
    batch, tokens = noise.orders.shape
    repeats = len(noise.t) // (batch * tokens)
    within = hidden + tokens * torch.arange(batch).unsqueeze(1)  # [B, K]
    block = batch * tokens * torch.arange(repeats).view(-1, 1, 1)
    return moved((block + within).flatten(), device)


def token_conditions(
    network: Harmon,
    options: HarmonOptions,
    latents: Tensor,
    condition: Condition,
    noise: DiffusionNoise,
) -> Tensor:
    """The head's conditions z [B, L, D] for latents [B, L, C], without using the masked ones."""
    grid, dropout = network.config.grid, noise.dropout
    _, visible = layouts.places(noise.orders, noise.masked)
    visible = moved(visible, network.device)
    mar = network.mar
    seen = mar.encode(latents, grid, visible, dropout and dropout.branch(1))
    embeddings, mask = _prompt(network, options, condition, noise)
    image = network.to_llm(seen)
    embeddings = torch.cat([embeddings, image.to(embeddings.dtype)], dim=1)
    mask = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
    hidden = network.hidden(
        embeddings, mask=mask, positions=layouts.positions(mask), unpadded=_unpadded(options)
    )
    encoded = network.with_context(seen, hidden[:, -image.shape[1] :])
    return mar.decode(encoded, grid, visible, dropout and dropout.branch(2))


def _unpadded(options: HarmonOptions) -> Implementation | None:
    """How attention runs without padding; None to keep the padding."""
    return options.implementation if options.unpadded else None


def _prompt(
    network: Harmon, options: HarmonOptions, condition: Condition, noise: DiffusionNoise
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, P, H] and mask [B, P] of the prompts, with text dropout applied and the image inserted."""
    dropped = noise.text_dropout < options.text_dropout
    texts = [
        condition.dropped if drop else text
        for text, drop in zip(condition.texts, dropped.tolist(), strict=True)
    ]
    hide = options.dropout_hides_image and condition.has_image
    seen = ~dropped if hide else None
    image = condition_image(network, condition, options.condition_gradient, noise.dropout)
    return embed_prompts(network, texts, image, seen)


def answer_loss(
    network: Harmon, options: HarmonOptions, conversation: Conversation, latents: Tensor | None
) -> Loss:
    """Next-token cross-entropy (fp32) on answers about images with `latents` [B, m, n, C] (harmon.md c) or text.

    Only the answers' hidden states pass the head, and the logits of the full vocabulary are never stored.
    """
    image = None
    if latents is not None:
        image = read_image(network, latents, options.condition_gradient, conversation.dropout)
    embeddings, mask = embed_prompts(network, conversation.ids, image)
    hidden = network.hidden(embeddings, mask=mask, unpadded=_unpadded(options))
    labels, _ = padded(conversation.labels, IGNORE)
    length = 0 if image is None else image.shape[1]
    said, labels = with_targets(hidden[:, :-1], layouts.shifted_labels(labels, length))
    total = linear_cross_entropy(
        said,
        network.llm.lm_head.weight,
        labels,
        reduction="sum",
        all_valid=True,
        implementation=options.implementation,
    )
    return Loss(total, conversation.count)
