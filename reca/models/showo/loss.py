"""Show-o's losses as pure functions of network, options, target, condition and noise.

Source: docs/reference/showo.md 3 and 5. Letters: B batch, L sequence, N image codes, D width.
"""

from __future__ import annotations

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.models.common.batching import moved
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
    """Cross-entropy on the masked `codes` [B, N] (showo.md 3.1, 3.6), over the full vocabulary unless
    `loss_vocab` is `image`.
    """
    config = network.config
    layout, tokens = _generation_parts(config, options, codes, condition, noise)
    count, layout = layout.count, layout.prepared(options.trim, network.device)
    layout = layout.filled(moved(tokens, network.device))
    learn = options.reca_embedding_grad if condition.understanding is not None else True
    learn = config.understanding == "vq" if learn is None else learn
    states = hidden(network, options, layout, condition.understanding, learn)
    vocab = config.ids.codes if options.loss_vocab == "image" else None
    return Loss(_token_loss(network, options, states, layout, vocab), count)


def generation_layout(
    config: ShowoConfig,
    options: ShowoOptions,
    codes: Tensor,
    condition: Condition,
    noise: MaskNoise,
) -> Layout:
    """The training sequences of `generation_loss`: masked codes [B, N] after their condition."""
    layout, tokens = _generation_parts(config, options, codes, condition, noise)
    return layout.filled(tokens.to(layout.ids.device))


def _generation_parts(
    config: ShowoConfig,
    options: ShowoOptions,
    codes: Tensor,
    condition: Condition,
    noise: MaskNoise,
) -> tuple[Layout, Tensor]:
    """The layout on the CPU with placeholders, and the token ids [B, K] on the device of the codes."""
    masked, tokens = noise.masked, codes.long() + config.ids.first_image
    placeholders = layouts.stand_ins(codes)
    image = placeholders.masked_fill(masked, config.ids.mask)
    if condition.understanding is None:
        condition = _with_dropped_texts(config, options, condition, noise)
    elif config.understanding == "vq":
        read = condition.understanding
        tokens = torch.cat([tokens, read.to(tokens.device).long() + config.ids.first_image], dim=1)
        condition = Condition(condition.texts, _read_stand_ins(config, read, codes.shape[1]))
    targets = placeholders.masked_fill(~masked, IGNORE)
    room = layouts.max_text_training(config, options)
    return layouts.generation(config, options, condition, image, targets, room), tokens


def _read_stand_ins(config: ShowoConfig, read: Tensor, first: int) -> Tensor:
    """Placeholders of input codes [B, C], minus the offset that a layout adds to codes."""
    return layouts.stand_ins(read, first) - config.ids.first_image


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
    """Next-token cross-entropy on answers (showo.md 3.2, 3.3); `understanding` [B, P, D], None: no image."""
    layout, tokens = _conversation_parts(network.config, conversation, understanding)
    count, layout = layout.count, layout.prepared(options.trim, network.device)
    layout = layout.filled(None if tokens is None else moved(tokens, network.device))
    states = hidden(network, options, layout, understanding)
    return Loss(_token_loss(network, options, states, layout), count)


def conversation_layout(
    config: ShowoConfig, conversation: Conversation, understanding: Tensor | None
) -> Layout:
    """The training sequences [B, L] of `answer_loss`."""
    layout, tokens = _conversation_parts(config, conversation, understanding)
    return layout.filled(None if tokens is None else tokens.to(layout.ids.device))


def _conversation_parts(
    config: ShowoConfig, conversation: Conversation, understanding: Tensor | None
) -> tuple[Layout, Tensor | None]:
    """As `_generation_parts`; no token ids for CLIP features or without an image."""
    tokens = None
    if understanding is not None and config.understanding == "vq":
        tokens = understanding.long() + config.ids.first_image
        understanding = _read_stand_ins(config, understanding, 0)
    batch, system = len(conversation.ids), conversation.system
    prefix = layouts.reading_prefix(config, batch, understanding, system)
    texts, labels, length = conversation.ids, conversation.labels, conversation.length
    return layouts.conversation(prefix, texts, labels, length, config.ids), tokens


def hidden(
    network: Showo,
    options: ShowoOptions,
    layout: Layout,
    understanding: Tensor | None,
    embeddings_learn: bool = True,
) -> Tensor:
    """Final hidden states [B, L, D] of a layout with `understanding` in its CLIP slots."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and embeddings_learn):
        embeddings = network.inputs(layout.ids, understanding, layout.clip_at)
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
) -> Tensor:
    """Sum of cross-entropies (fp32) of states [B, L, D] at a prepared layout's targets; logits are never stored."""
    assert layout.aimed is not None  # it is prepared
    head = network.showo.lm_head
    return linear_cross_entropy(
        hidden.flatten(0, 1)[layout.aimed],
        head.weight,
        layout.targets.flatten()[layout.aimed],
        head.bias,
        vocab=None if vocab is None else (vocab.start, vocab.stop),
        reduction="sum",
        all_valid=True,
        implementation=options.implementation,
    )
