"""Contexts with cached keys and values, and the image block generated after them.

A context holds B rows of any lengths; rows are padded and padding is masked. The cache of a block does not depend on
later blocks, so a prefix runs once, and every noise level, guidance branch and answer token reuses it.
Source: docs/reference/bagel.md 2, 4 and 7.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reca.models.bagel.attention import BlockAttention
from reca.models.bagel.batch import Condition
from reca.models.bagel.layout import framed
from reca.models.bagel.network import Bagel, Pair
from reca.models.bagel.vision import patchify, position_ids, positions
from reca.models.common.batching import moved, padded

if TYPE_CHECKING:
    from reca.models.contract import Features


@dataclass(frozen=True)
class Block:
    """One block of B rows: und tokens [B, U, D] in sequence order, and gen tokens [B, G, D] (full blocks only).

    `valid` [B, U + G] marks real tokens, und before gen; None: all. `advance` [B]: increment of the rope id.
    """

    und: Tensor
    causal: bool
    advance: Tensor
    gen: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """Keys and values [B, P, K, E] per layer, which of the P are real [B, P], and the next rope id of each row [B].

    `ragged`: some of the P may not be real; the host knows, so that it need not look at `valid`.
    """

    kept: tuple[tuple[Tensor, Tensor], ...]
    valid: Tensor
    position: Tensor
    ragged: bool = True

    def __len__(self) -> int:
        return len(self.position)


def empty(network: Bagel, rows: int) -> Context:
    """An empty context."""
    weight = network.decoder.embed_tokens.weight
    config = network.config.llm
    none = weight.new_zeros(rows, 0, config.num_key_value_heads, config.head_dim)
    kept = tuple((none, none) for _ in network.decoder.layers)
    device = weight.device
    position = torch.zeros(rows, dtype=torch.long, device=device)
    return Context(kept, torch.zeros(rows, 0, dtype=torch.bool, device=device), position, False)


def stacked(contexts: Sequence[Context]) -> Context:
    """Concatenate the rows of several contexts, padded to the longest."""
    longest = max(context.valid.shape[1] for context in contexts)
    padded = [_widened(context, longest) for context in contexts]
    kept = tuple(
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
        for layer in zip(*(context.kept for context in padded), strict=True)
    )
    valid = torch.cat([context.valid for context in padded])
    position = torch.cat([context.position for context in padded])
    return Context(kept, valid, position, any(context.ragged for context in padded))


def _widened(context: Context, length: int) -> Context:
    missing = length - context.valid.shape[1]
    if not missing:
        return context
    pad = torch.nn.functional.pad
    kept = tuple(
        (pad(k, (0, 0, 0, 0, 0, missing)), pad(v, (0, 0, 0, 0, 0, missing)))
        for k, v in context.kept
    )
    return Context(kept, pad(context.valid, (0, missing)), context.position, True)


# ---- blocks ------------------------------------------------------------------------------------
def text_block(network: Bagel, texts: Sequence[Sequence[int] | None], least: int = 0) -> Block:
    """Texts as BOS, ids, EOS; a row of None has no text."""
    special, device = network.config.special, network.decoder.embed_tokens.weight.device
    rows = [[] if text is None else framed(text, special) for text in texts]
    ids, real = padded(rows, special.eos, width=max(least, *map(len, rows)))
    sizes, valid = moved(real.sum(dim=1), device), None if bool(real.all()) else moved(real, device)
    return Block(network.embed(moved(ids, device)), True, sizes, valid=valid)


def picture_block(
    network: Bagel, embeddings: Tensor, valid: Tensor | None = None, is_latent: bool = False
) -> Block:
    """SOI, an image's tokens [B, P, D], EOI: und tokens, or gen tokens if `is_latent`."""
    rows = len(embeddings)
    first, last = markers(network, rows).split(1, dim=1)
    one = torch.ones(rows, dtype=torch.long, device=embeddings.device)
    if is_latent:
        return Block(torch.cat([first, last], dim=1), False, one, gen=embeddings)
    if valid is not None:
        ends = valid.new_ones(rows, 1)
        valid = torch.cat([ends, valid, ends], dim=1)
    und = torch.cat([first.to(embeddings.dtype), embeddings, last.to(embeddings.dtype)], dim=1)
    return Block(und, False, one, valid=valid)


def vit_block(network: Bagel, states: Tensor, grid: Tensor) -> Block:
    """Understanding embeddings of ViT states [B, P, Dvit], zero-padded, on grids [B, 2] of patches."""
    ids, valid = positions(grid, states.shape[1], network.config.vit_max_num_patch_per_side)
    weight = network.connector.fc1.weight
    states = moved(states, weight.device, weight.dtype)
    embeddings = network.read(states, moved(ids, weight.device))
    return picture_block(
        network, embeddings, None if valid is None else moved(valid, weight.device)
    )


def read_block(network: Bagel, features: Features) -> Block:
    """The image of a question: the ViT states of `encode(images, "read")`."""
    if "grid" not in features:
        raise ValueError("questions need ViT features; encode the images with use 'read'")
    return vit_block(network, features["understanding"], features["grid"])


def clean_block(network: Bagel, latents: Tensor) -> Block:
    """An image as clean latents [B, z, h, w] at time 0."""
    patch = network.config.latent_patch_size
    grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
    ids = moved(position_ids(grid, network.config.max_latent_size), latents.device)
    start = latents.new_zeros(len(latents), 1)
    tokens = network.latents_in(patchify(latents, patch), start, ids)
    return picture_block(network, tokens, is_latent=True)


def condition_blocks(network: Bagel, condition: Condition) -> list[Block]:
    """The prefix of a generated image: understanding embeddings, then text, if present."""
    blocks: list[Block] = []
    if condition.seen is not None:
        if condition.grid is None:
            raise ValueError("a VAE condition has gen tokens; set network.options.step: packed")
        blocks.append(vit_block(network, condition.seen, condition.grid))
    if any(text is not None for text in condition.texts) or (not blocks and _is_sharded()):
        blocks.append(text_block(network, condition.texts, least=1))
    return blocks


def _is_sharded() -> bool:
    """Whether other ranks wait in each layer for this one; then none may leave out the prefix of dropped captions."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def markers(network: Bagel, rows: int) -> Tensor:
    """Embeddings of SOI and EOI, [B, 2, D]."""
    special = network.config.special
    device = network.decoder.embed_tokens.weight.device
    ids = torch.tensor([special.start_of_image, special.end_of_image])
    return network.embed(moved(ids, device)).expand(rows, 2, -1)


# ---- passes ------------------------------------------------------------------------------------
def run_blocks(
    network: Bagel, context: Context, blocks: Sequence[Block], *, frozen: bool = False
) -> tuple[Context, Pair]:
    """Run blocks after a context in one pass; returns the extended context and the final states of the new tokens."""
    plan = _Plan(context, blocks)
    attends = _attends(context, plan.mask)
    hidden = _run(network, blocks, plan, attends, frozen=frozen)
    return plan.after(context, attends), hidden


def extend(
    network: Bagel, context: Context, blocks: Sequence[Block], *, frozen: bool = False
) -> Context:
    """The context extended by blocks, as of `run_blocks`, where nothing reads their final states."""
    plan = _Plan(context, blocks)
    attends = _attends(context, plan.mask)
    _run(network, blocks, plan, attends, frozen=frozen, keys_only=True)
    return plan.after(context, attends)


def prefix(network: Bagel, blocks: Sequence[Block], rows: int, *, frozen: bool = True) -> Context:
    """The context of some blocks, in one pass; `frozen` blocks gradients through their und tokens."""
    start = empty(network, rows)
    return extend(network, start, blocks, frozen=frozen) if blocks else start


def _run(
    network: Bagel,
    blocks: Sequence[Block],
    plan: _Plan,
    attends: Sequence[BlockAttention],
    *,
    frozen: bool,
    keys_only: bool = False,
) -> Pair:
    """The decoder over the tokens of all blocks."""
    und = torch.cat([block.und for block in blocks], dim=1)
    gen = torch.cat([_gen(block) for block in blocks], dim=1)
    tokens = Pair(und, gen)
    return network.decoder(tokens, plan.positions, attends, frozen=frozen, keys_only=keys_only)


def _attends(context: Context, mask: Tensor | None) -> list[BlockAttention]:
    pasts = context.kept if context.valid.shape[1] else [None] * len(context.kept)
    return [BlockAttention(past, mask) for past in pasts]


def _gen(block: Block) -> Tensor:
    """A block's generation tokens [B, N, D]; empty if it has only understanding tokens."""
    return block.gen if block.gen is not None else block.und[:, :0]


def _joined(
    past: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Keys and values of past and new tokens, [B, L, H, D] each."""
    assert new is not None, "attention ran"
    if not past[0].shape[1]:
        return new
    return torch.cat([past[0], new[0]], dim=1), torch.cat([past[1], new[1]], dim=1)


class _Plan:
    """Rope ids and mask of blocks after a context; columns are all und tokens, then all gen tokens."""

    def __init__(self, context: Context, blocks: Sequence[Block]) -> None:
        device, rows = context.position.device, len(context)
        rope = context.position
        positions: list[list[Tensor]] = [[], []]
        valid: list[list[Tensor]] = [[], []]
        number: list[list[int]] = [[], []]
        for index, block in enumerate(blocks):
            sizes = (block.und.shape[1], _gen(block).shape[1])
            real = block.valid
            if real is None:
                real = torch.ones(rows, sum(sizes), dtype=torch.bool, device=device)
            for kind, (size, part) in enumerate(zip(sizes, real.split(sizes, dim=1), strict=True)):
                step = torch.arange(size, device=device) * int(block.causal)
                positions[kind].append(rope.unsqueeze(1) + step)
                valid[kind].append(part)
                number[kind] += [index] * size
            rope = rope + block.advance
        self.next_position = rope
        und, gen = (torch.cat(parts, dim=1) for parts in positions)
        self.positions = (und, gen)
        self.valid = torch.cat([*valid[0], *valid[1]], dim=1)
        self.ragged = context.ragged or any(block.valid is not None for block in blocks)
        causal = moved(torch.tensor([block.causal for block in blocks]), device)
        order = moved(torch.tensor([*number[0], *number[1]]), device)
        self.mask = self._mask(context.valid, order, causal)

    def after(self, context: Context, attends: Sequence[BlockAttention]) -> Context:
        """The context extended by the blocks, whose keys and values `attends` kept."""
        kept = tuple(
            _joined(past, one.kept) for past, one in zip(context.kept, attends, strict=True)
        )
        valid = torch.cat([context.valid, self.valid], dim=1)
        return Context(kept, valid, self.next_position, self.ragged)

    def _mask(self, past: Tensor, number: Tensor, causal: Tensor) -> Tensor | None:
        order = torch.arange(len(number), device=number.device)
        same = number.unsqueeze(0) == number.unsqueeze(1)
        inside = same & (~causal[number].unsqueeze(1) | (order.unsqueeze(0) <= order.unsqueeze(1)))
        own = inside | (number.unsqueeze(0) < number.unsqueeze(1))  # [query, key]
        if not self.ragged and not past.shape[1]:
            return own
        if not self.ragged:
            return torch.cat([own.new_ones(len(own), past.shape[1]), own], dim=1)
        itself = torch.eye(len(number), dtype=torch.bool, device=number.device)
        new = (own & self.valid.unsqueeze(1)) | itself  # [B, Q, Q]; pads see themselves
        old = past.unsqueeze(1).expand(-1, len(number), -1)
        return torch.cat([old, new], dim=2).unsqueeze(1)


def velocity(
    network: Bagel, context: Context, x: Tensor, t: Tensor, ids: Tensor, *, frozen: bool = True
) -> Tensor:
    """Velocity [B, N, C] of noisy latent tokens x [B, N, C] at times t [B]; see `drawn_states`."""
    return network.llm2vae(drawn_states(network, context, x, t, ids, frozen=frozen))


def drawn_states(
    network: Bagel, context: Context, x: Tensor, t: Tensor, ids: Tensor, *, frozen: bool = True
) -> Tensor:
    """Final states [B, N, D] of noisy latent tokens x at times t [B], each row attending to its context and block.

    `ids` [N]: positions in the latent table. The two markers are und tokens; `frozen` blocks gradients through them.
    """
    gen = network.latents_in(x, t.unsqueeze(1), ids)
    und = markers(network, len(x))
    position = context.position.unsqueeze(1)
    mask = None
    if context.ragged:
        own = context.valid.new_ones(len(x), 2 + x.shape[1])
        mask = torch.cat([context.valid, own], dim=1)[:, None, None, :]
    positions = (position.expand(-1, 2), position.expand(-1, x.shape[1]))
    attends = _attends(context, mask)
    return network.decoder(Pair(und, gen), positions, attends, frozen=frozen).gen
