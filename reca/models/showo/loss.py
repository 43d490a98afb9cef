"""Show-o's losses as pure functions of network, options, target, condition and noise.

Source: docs/reference/showo.md 3 and 5. Letters: B batch, L sequence, N image codes, D width.
"""

from __future__ import annotations

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.models.contract import Loss
from reca.models.showo import layout as layouts
from reca.models.showo.batch import Condition, Conversation, MaskNoise
from reca.models.showo.config import ShowoConfig, ShowoOptions
from reca.models.showo.layout import IGNORE, Layout
from reca.models.showo.network import Showo


def generation_loss(
    network: Showo,
    options: ShowoOptions,
    codes: Tensor,
    condition: Condition,
    noise: MaskNoise,
) -> Loss:
    """Cross-entropy on the masked ones of `codes` [B, N] (showo.md 3.1, 3.6), over the full vocabulary unless
    `loss_vocab` is image.
    """
    config = network.config
    layout = generation_layout(config, options, codes, condition, noise)
    layout = layout.prepared(options.trim, network.device)
    learn: bool | None = True
    if condition.understanding is not None:
        learn = options.reca_embedding_grad
    if learn is None:  # as published
        learn = config.understanding == "vq"
    states = hidden(network, options, layout, condition.understanding, learn)
    vocab = config.ids.codes if options.loss_vocab == "image" else None
    return _token_loss(network, options, states, layout, vocab)


def generation_layout(
    config: ShowoConfig,
    options: ShowoOptions,
    codes: Tensor,
    condition: Condition,
    noise: MaskNoise,
) -> Layout:
    """The training sequences of `generation_loss`: masked codes [B, N] after their condition."""
    masked = noise.masked
    wanted = codes.long().cpu() + config.ids.first_image
    image = wanted.masked_fill(masked, config.ids.mask)
    if condition.understanding is None:
        condition = _with_dropped_texts(config, options, condition, noise)
    targets = wanted.masked_fill(~masked, IGNORE)
    room = layouts.max_text_training(config, options)
    return layouts.generation(config, options, condition, image, targets, room)


def _with_dropped_texts(
    config: ShowoConfig, options: ShowoOptions, condition: Condition, noise: MaskNoise
) -> Condition:
    dropped = (noise.text_dropout < options.text_dropout).tolist()
    empty = [config.ids.bos, config.ids.eos]
    return Condition(
        [empty if drop else text for text, drop in zip(condition.texts, dropped, strict=True)]
    )


def answer_loss(
    network: Showo, options: ShowoOptions, conversation: Conversation, understanding: Tensor | None
) -> Loss:
    """Next-token cross-entropy on answers (showo.md 3.2, 3.3); without `understanding` about no image."""
    layout = conversation_layout(network.config, conversation, understanding)
    layout = layout.prepared(options.trim, network.device)
    states = hidden(network, options, layout, understanding)
    return _token_loss(network, options, states, layout)


def conversation_layout(
    config: ShowoConfig, conversation: Conversation, understanding: Tensor | None
) -> Layout:
    """The training sequences of `answer_loss`."""
    batch, system = len(conversation.texts), conversation.system
    prefix = layouts.reading_prefix(config, batch, understanding, system)
    texts, labels, length = conversation.texts, conversation.labels, conversation.length
    return layouts.conversation(prefix, texts, labels, length, config.ids)


def hidden(
    network: Showo,
    options: ShowoOptions,
    layout: Layout,
    understanding: Tensor | None,
    embeddings_learn: bool = True,
) -> Tensor:
    """Final hidden states [B, L, D] of a layout whose CLIP slots hold `understanding`."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and embeddings_learn):
        embeddings = network.inputs(layout.ids, understanding)
    return network.hidden(
        inputs_embeds=embeddings,
        blocks=layout.blocks(),
        implementation=options.implementation,
        position_ids=layout.positions,
    )


def _token_loss(
    network: Showo,
    options: ShowoOptions,
    hidden: Tensor,
    layout: Layout,
    vocab: slice | None = None,
) -> Loss:
    """Sum of cross-entropies (fp32) at the positions with targets; logits are never stored."""
    head = network.showo.lm_head
    total = linear_cross_entropy(
        hidden,
        head.weight,
        layout.targets,
        head.bias,
        vocab=None if vocab is None else (vocab.start, vocab.stop),
        ignore_index=IGNORE,
        reduction="sum",
        implementation=options.implementation,
    )
    return Loss(total, layout.count)
