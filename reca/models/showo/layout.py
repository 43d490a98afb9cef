"""Show-o's sequences as ids, roles and targets: one builder per task, one attention mask rule.

Everything here is a pure function of token ids; text is already tokenised (`text.py`). A layout
assigns a role to each token; the attention mask follows from the roles alone, so columns can be
dropped before the mask is built. Source: docs/reference/showo.md 3. Letters:
B batch, L sequence, N image codes, P CLIP patches, M `max_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from reca_kernels import Kind
from reca_kernels import Layout as BlockLayout
from torch import Tensor

from reca.models.common.batching import moved, padded

if TYPE_CHECKING:
    from reca.models.showo.batch import Condition
    from reca.models.showo.config import ShowoConfig, ShowoOptions, SpecialIds

IGNORE = -100
"""In `targets`, marks a position without a loss; in `ids`, one with a CLIP embedding instead of a
token.
"""

STAND_IN = -1000
"""In `ids` and `targets`, -1000 - k is a placeholder for column k of the codes passed to `Layout.filled`."""

PAD, TEXT, CONDITION, IMAGE = range(4)
"""Roles of tokens: padding, causal text, an input image, the generated image."""


@dataclass(frozen=True)
class Layout:
    """A batch of sequences: `ids`, `roles`, `targets` and `positions`, each int64 [B, L].

    `targets[b, q]` is what the logit at q must predict (shifts are already applied), IGNORE where
    nothing. `condition_is_open`: every row sees the read image, also rows before it.
    `pads_are_hidden`: not even pads see pads. Once `prepared`: `clip_at`, the first column of the CLIP embeddings,
    and `aimed` [M], the positions with a target in the flattened batch.
    """

    ids: Tensor
    roles: Tensor
    targets: Tensor
    positions: Tensor
    condition_is_open: bool = False
    pads_are_hidden: bool = False
    clip_at: int | None = None
    aimed: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of positions with a loss."""
        return int((self.targets != IGNORE).sum())

    def allowed(self) -> Tensor:
        """The attention mask, bool [B, L, L]: causal, bidirectional within images, pads visible only to pads."""
        query, key = self.roles.unsqueeze(2), self.roles.unsqueeze(1)
        length = self.roles.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=self.roles.device).tril()
        seen = seen | ((query == key) & (key >= CONDITION))
        if self.condition_is_open:
            seen = seen | (key == CONDITION)
        visible = key != PAD if self.pads_are_hidden else (key != PAD) | (query == PAD)
        return seen & visible

    def blocks(self) -> BlockLayout:
        """The same mask per token, as required by `reca_kernels.block_attention`: row b is sample b."""
        kinds = torch.tensor(
            [
                Kind.HIDDEN if self.pads_are_hidden else Kind.PAD,
                Kind.CAUSAL,
                Kind.OPEN if self.condition_is_open else Kind.FULL,
                Kind.FULL,
            ],
        )
        return BlockLayout.batch(moved(kinds, self.roles.device)[self.roles], self.roles)

    def trimmed(self) -> Layout:
        """Drop columns that are padding in every row; position ids stay, so results do not change (showo.md 7.8)."""
        keep = (self.roles != PAD).any(dim=0)
        return self if bool(keep.all()) else self._columns(keep)

    def columns(self, start: int, stop: int) -> Layout:
        """Only columns start..stop-1."""
        return self._columns(slice(start, stop))

    def image_columns(self) -> tuple[int, int]:
        """Start and stop of the generated block, which is at the same position in every row."""
        drawn = (self.roles[0] == IMAGE).nonzero()
        return int(drawn[0]), int(drawn[-1]) + 1

    def prepared(self, trim: bool, device: torch.device) -> Layout:
        """As the network takes it: trimmed where asked, on its device, which is not read for a place any more."""
        layout = self.trimmed() if trim else self
        places = (layout.ids[0] == IGNORE).nonzero()
        aimed = (layout.targets.flatten() != IGNORE).nonzero().squeeze(1)
        return replace(
            layout.to(device),
            clip_at=int(places[0]) if len(places) else None,
            aimed=moved(aimed, device),
        )

    def filled(self, codes: Tensor | None) -> Layout:
        """Replace the placeholders with token ids `codes` [B, K] on the layout's device."""
        if codes is None:
            return self

        def put(ids: Tensor) -> Tensor:
            column = (STAND_IN - ids).clamp(0, codes.shape[1] - 1)
            return torch.where(ids <= STAND_IN, codes.gather(1, column), ids)

        return replace(self, ids=put(self.ids), targets=put(self.targets))

    def to(self, device: torch.device | str) -> Layout:
        """The layout on another device."""
        names = ("ids", "roles", "targets", "positions")
        found: dict[str, Any] = {name: moved(getattr(self, name), device) for name in names}
        return replace(self, **found)

    def _columns(self, chosen: Tensor | slice) -> Layout:
        """The chosen columns of every [B, L] tensor."""
        names = ("ids", "roles", "targets", "positions")
        return replace(self, **{name: getattr(self, name)[:, chosen] for name in names})


@dataclass(frozen=True)
class Piece:
    """Some columns of a layout: `ids`, `roles` and `targets`, each [B, columns]."""

    ids: Tensor
    roles: Tensor
    targets: Tensor


def stand_ins(codes: Tensor, first: int = 0) -> Tensor:
    """CPU placeholders for codes [B, N] on any device: columns `first`.. of the argument of `Layout.filled`.

    A layout is built, trimmed and counted on the CPU; with placeholders the codes need not be copied from the GPU.
    """
    columns = torch.arange(first, first + codes.shape[1])
    return (STAND_IN - columns).expand(codes.shape)


# ---- generation: text-to-image and RecA----------------------------------------------------------
def text_to_image(
    texts: Sequence[Sequence[int]],
    image: Tensor,
    targets: Tensor,
    special: SpecialIds,
    max_text: int,
    boundary_targets: bool = True,
) -> Layout:
    """`[pad]* [t2i] text | [soi] image [eoi]` with a prefix of M + 1 tokens (showo.md 3.1).

    `texts` are framed as `[bos] .. [eos]`; longer ones are truncated and end in eos. `image` [B, N]
    holds token ids (codes or MASK), `targets` [B, N] the ids to predict. `boundary_targets`: soi
    and eoi have a loss, too, as published.
    """
    prefix = [_truncate([special.t2i, *text], max_text + 1, special.eos) for text in texts]
    block = _generated_block(image, targets, special, boundary_targets)
    return _assemble([_padded(prefix, max_text + 1, special.pad, left=True), block])


def reconstruction_clip(
    prompts: Sequence[Sequence[int]],
    clip_tokens: int,
    image: Tensor,
    targets: Tensor,
    special: SpecialIds,
    head_text: int,
) -> Layout:
    """`[mmu][soi] CLIP*P [eoi] prompt [pad]* | [soi] image [eoi]`, right-padded to `head_text` ids
    + P (showo.md 3.4).

    `image` and `targets` [B, N]. ValueError if a prompt (framed as `[bos] .. [eos]`) does not fit.
    """
    batch, room = len(prompts), head_text - 3
    _check_room(prompts, room, "network.head_text")
    head = [
        _constant(batch, [special.mmu, special.soi], TEXT),
        _constant(batch, [IGNORE] * clip_tokens, CONDITION),
        _constant(batch, [special.eoi], TEXT),
        _padded(prompts, room, special.pad),
        _constant(batch, [special.soi], TEXT),
    ]
    block = Piece(image, torch.full_like(image, IMAGE), targets)
    tail = _constant(batch, [special.eoi], TEXT)
    return _assemble([*head, block, tail], condition_is_open=True, pads_are_hidden=True)


def reconstruction_vq(
    prompts: Sequence[Sequence[int]],
    condition: Tensor,
    image: Tensor,
    targets: Tensor,
    special: SpecialIds,
    max_text: int,
) -> Layout:
    """`[pad]* [mmu][soi] condition [eoi] prompt | [soi] image [eoi]` with M = pads + prompt (showo.md
    3.5).

    `condition` [B, C] holds the token ids of the input image. ValueError if a prompt does not fit.
    """
    _check_room(prompts, max_text, "options.max_text_training")
    fixed = condition.shape[1] + 3
    rows, roles = [], []
    for prompt, codes in zip(prompts, condition.tolist(), strict=True):
        pads = max_text - len(prompt)
        rows.append([special.pad] * pads + [special.mmu, special.soi, *codes, special.eoi, *prompt])
        roles.append([PAD] * pads + [TEXT] + [CONDITION] * (fixed - 1) + [TEXT] * len(prompt))
    ids = torch.tensor(rows)
    head = Piece(ids, torch.tensor(roles), torch.full_like(ids, IGNORE))
    return _assemble([head, _generated_block(image, targets, special, boundary_targets=False)])


# ---- understanding: conversations and questions-----------------------------------------------------
def clip_prefix(
    batch: int, clip_tokens: int, system: Sequence[int], special: SpecialIds
) -> list[Piece]:
    """`[mmu] system [soi] CLIP*P [eoi]` (showo.md 3.2); the system prompt may be empty."""
    return [
        _constant(batch, [special.mmu, *system, special.soi], TEXT),
        _constant(batch, [IGNORE] * clip_tokens, CONDITION),
        _constant(batch, [special.eoi], TEXT),
    ]


def vq_prefix(codes: Tensor, special: SpecialIds) -> list[Piece]:
    """`[mmu][soi] codes [eoi]`, all visible to every row; `codes` [B, N] are token ids (showo.md 3.3)."""
    batch = codes.shape[0]
    return [
        _constant(batch, [special.mmu, special.soi], CONDITION),
        Piece(codes, torch.full_like(codes, CONDITION), torch.full_like(codes, IGNORE)),
        _constant(batch, [special.eoi], CONDITION),
    ]


def text_prefix(batch: int, special: SpecialIds) -> list[Piece]:
    """`[bos]`: a conversation without an image."""
    return [_constant(batch, [special.bos], TEXT)]


def conversation(
    prefix: Sequence[Piece],
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    length: int,
    special: SpecialIds,
) -> Layout:
    """`prefix | text [pad]*`: conversations truncated and right-padded to `length`, each label predicted
    one token earlier.
    """
    text = _padded([row[:length] for row in texts], length, special.pad)
    shifted = _padded([row[:length] for row in labels], length, IGNORE).ids
    unshifted = _assemble(
        [*prefix, replace(text, targets=shifted)], condition_is_open=True, pads_are_hidden=False
    )
    shifted = unshifted.targets.roll(-1, dims=1)
    shifted[:, -1] = IGNORE
    return replace(unshifted, targets=shifted)


def question(
    prefix: Sequence[Piece], texts: Sequence[Sequence[int]], special: SpecialIds
) -> Layout:
    """`prefix | [pad]* text`: all rows end in the last column, where the answer begins.

    Pads take no position here, so a row gives the same result as on its own.
    """
    longest = max(len(row) for row in texts)
    layout = _assemble(
        [*prefix, _padded(texts, longest, special.pad, left=True)], condition_is_open=True
    )
    positions = (layout.roles != PAD).long().cumsum(dim=1) - 1
    return replace(layout, positions=positions)


# ---- by configuration --------------------------------------------------------------------------
def max_text_training(config: ShowoConfig, options: ShowoOptions) -> int:
    """M of the training layouts."""
    return options.max_text_training or config.max_text


def generation(
    config: ShowoConfig,
    options: ShowoOptions,
    condition: Condition,
    image: Tensor,
    targets: Tensor,
    max_text: int,
) -> Layout:
    """The layout of a condition and the generated image [B, N] (token ids) in this variant."""
    special, texts, read = config.ids, condition.texts, condition.understanding
    if read is None:
        return text_to_image(texts, image, targets, special, max_text, options.t2i_boundary_tokens)
    if config.understanding == "clip":
        return reconstruction_clip(texts, read.shape[1], image, targets, special, config.head_text)
    codes = read.long().cpu() + special.first_image
    return reconstruction_vq(texts, codes, image, targets, special, max_text)


def reading_prefix(
    config: ShowoConfig, batch: int, understanding: Tensor | None, system: Sequence[int] = ()
) -> list[Piece]:
    """The prefix of a text: an image as `understanding` features [B, P, D] or codes [B, P], or only bos."""
    special = config.ids
    if understanding is None:
        return text_prefix(batch, special)
    if config.understanding == "clip":
        return clip_prefix(batch, understanding.shape[1], system, special)
    return vq_prefix(understanding.long().cpu() + special.first_image, special)


def conversation_room(
    config: ShowoConfig, options: ShowoOptions, system: Sequence[int], with_image: bool = True
) -> int:
    """Length of the text block; with CLIP, the sequence is as long as a text-to-image one (showo.md 3.2)."""
    most = room = max_text_training(config, options)
    if with_image and config.understanding == "clip":
        room -= config.clip_tokens - config.num_vq_tokens + len(system)
    if room < 1:
        raise ValueError(
            f"max_text {most} leaves no room for a conversation next to {config.clip_tokens} CLIP tokens; "
            "raise options.max_text_training (recipe: 576)"
        )
    return room


# ---- pieces --------------------------------------------------------------------------------------
def _assemble(
    pieces: Sequence[Piece], condition_is_open: bool = False, pads_are_hidden: bool = False
) -> Layout:
    ids = torch.cat([piece.ids for piece in pieces], dim=1)
    return Layout(
        ids=ids,
        roles=torch.cat([piece.roles for piece in pieces], dim=1),
        targets=torch.cat([piece.targets for piece in pieces], dim=1),
        positions=torch.arange(ids.shape[1]).expand_as(ids),
        condition_is_open=condition_is_open,
        pads_are_hidden=pads_are_hidden,
    )


def _constant(batch: int, row: Sequence[int], role: int) -> Piece:
    ids = torch.tensor(row, dtype=torch.long).expand(batch, -1)
    return Piece(ids, torch.full_like(ids, role), torch.full_like(ids, IGNORE))


def _generated_block(
    image: Tensor, targets: Tensor, special: SpecialIds, boundary_targets: bool
) -> Piece:
    """`[soi] image [eoi]` [B, N + 2], all of role IMAGE."""
    ends = [torch.full_like(image[:, :1], token) for token in (special.soi, special.eoi)]
    ids = torch.cat([ends[0], image, ends[1]], dim=1)
    end_targets = ends if boundary_targets else [torch.full_like(end, IGNORE) for end in ends]
    all_targets = torch.cat([end_targets[0], targets, end_targets[1]], dim=1)
    return Piece(ids, torch.full_like(ids, IMAGE), all_targets)


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int, left: bool = False) -> Piece:
    ids, real = padded(rows, fill, length, left)
    roles = torch.full_like(ids, TEXT).masked_fill_(~real, PAD)
    return Piece(ids, roles, torch.full_like(ids, IGNORE))


def _truncate(row: list[int], length: int, eos: int) -> list[int]:
    return row if len(row) <= length else [*row[: length - 1], eos]


def _check_room(prompts: Sequence[Sequence[int]], room: int, key: str) -> None:
    longest = max(len(prompt) for prompt in prompts)
    if longest > room:
        raise ValueError(
            f"a reconstruction prompt has {longest} tokens (with bos and eos) but only {room} fit; "
            f"shorten the prompt or raise {key}"
        )
