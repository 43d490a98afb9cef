"""Show-o's published micro-batch and sampler, transcribed from docs/reference/showo.md.

The baseline of `showo_step` and `showo_sampler`; each part cites its section. As published, sequences carry all pads,
masks are dense and built sample by sample, logits are those of all positions, the encoders run in every micro-batch,
and a text-to-image row runs with weight 0. Weights and plain layers are the package's, none of its optimisations;
its GELU, one operation, is, too: what the published code runs there is not known.
Letters: B batch, L sequence, N image codes, M `max_text`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.showo.config import ShowoConfig, SpecialIds
from reca.models.showo.encoders import FrozenEncoders
from reca.models.showo.network import Showo

IGNORE = -100
Ids = Sequence[Sequence[int]]


# ---- images (2) ----------------------------------------------------------------------------------
@torch.no_grad()
def codes(frozen: FrozenEncoders, pixels: Tensor) -> Tensor:
    """Codes [B, N] of pixels [B, 3, R, R] (1.3)."""
    return frozen.magvit.tokenise(pixels)


@torch.no_grad()
def clip_states(tower: Any, pixels: Tensor) -> Tensor:
    """Hidden state number -2 without the class token, [B, P, D], after all layers ran (1.2, 7.6)."""
    states = [tower.pre_layrnorm(tower.embeddings(pixels))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    tower.post_layernorm(states[-1][:, 0])
    return states[-2][:, 1:]


def clip_condition(pixels: Tensor, side: int) -> Tensor:
    """The RecA condition: bilinear, still in [-1, 1] (2, 7.1)."""
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)


# ---- corruption (4.1) ----------------------------------------------------------------------------
def corrupted(found: Tensor, t: Tensor, u: Tensor, special: SpecialIds) -> tuple[Tensor, Tensor]:
    """Input ids and labels [B, N] of codes [B, N]: slot j is masked iff argsort(u)[j] < max(1, round(N cos))."""
    slots = found.shape[1]
    count = (slots * torch.cos(math.pi / 2 * t)).round().clamp(min=1)
    masked = u.argsort(dim=1) < count.unsqueeze(1)
    ids = found.long() + special.first_image
    return torch.where(masked, special.mask, ids), torch.where(masked, ids, IGNORE)


# ---- sequences and masks (3) ---------------------------------------------------------------------
def text_to_image_ids(texts: Ids, image: Tensor, special: SpecialIds, room: int) -> Tensor:
    """`[pad]*p [t2i] [bos] text [eos]` of M + 1 tokens, then `[soi] image [eoi]` (3.1); texts hold bos and eos."""
    rows = []
    for text in texts:
        row = [special.t2i, *text]
        if len(row) > room + 1:
            row = [*row[:room], special.eos]
        rows.append([special.pad] * (room + 1 - len(row)) + row)
    return torch.cat([torch.tensor(rows), _framed(image, special)], dim=1)


def text_to_image_mask(ids: Tensor, special: SpecialIds) -> Tensor:
    """Pad rows are causal, text rows causal without pads, image rows see every key that is no pad (3.1)."""
    seen = []
    for row in ids:
        allowed = torch.ones(len(row), len(row), dtype=torch.int64).tril()
        pads = (row == special.pad).nonzero().flatten()
        first = len(pads)
        for pad in pads:
            allowed[first:, pad] = 0
        start = int((row == special.soi).nonzero()[0])
        allowed[start:] = 1
        for pad in pads:
            allowed[start:, pad] = 0
        seen.append(allowed)
    return torch.stack(seen).bool()


def conversation_ids(
    texts: Ids, system: Sequence[int], clip_tokens: int, length: int, special: SpecialIds
) -> Tensor:
    """`[mmu] system [soi] CLIP [eoi] text [pad]*` (3.2); CLIP slots hold -100."""
    rows = []
    for text in texts:
        head = [special.mmu, *system, special.soi, *[IGNORE] * clip_tokens, special.eoi]
        rows.append([*head, *text[:length], *[special.pad] * (length - len(text))])
    return torch.tensor(rows)


def conversation_mask(ids: Tensor) -> Tensor:
    """Causal, and the CLIP columns are visible to every row (3.2)."""
    seen = []
    for row in ids:
        allowed = torch.ones(len(row), len(row), dtype=torch.int64).tril()
        allowed[:, row == IGNORE] = 1
        seen.append(allowed)
    return torch.stack(seen).bool()


def reconstruction_ids(
    prompts: Ids, image: Tensor, clip_tokens: int, head_text: int, special: SpecialIds
) -> Tensor:
    """`[mmu][soi] CLIP [eoi] prompt [pad]*` of 128 ids and the CLIP slots, then `[soi] image [eoi]` (3.4)."""
    rows = []
    for prompt in prompts:
        row = [special.mmu, special.soi, *[IGNORE] * clip_tokens, special.eoi, *prompt]
        rows.append(row + [special.pad] * (head_text + clip_tokens - len(row)))
    return torch.cat([torch.tensor(rows), _framed(image, special)], dim=1)


def reconstruction_mask(ids: Tensor, slots: int, special: SpecialIds) -> Tensor:
    """Causal; CLIP columns visible to all; image slots see each other; then no row sees a pad (3.4)."""
    seen = []
    for row in ids:
        allowed = torch.ones(len(row), len(row), dtype=torch.int64).tril()
        allowed[:, row == IGNORE] = 1
        allowed[-1 - slots : -1, -1 - slots : -1] = 1
        for pad in (row == special.pad).nonzero().flatten():
            allowed[:, pad] = 0
        seen.append(allowed)
    return torch.stack(seen).bool()


def _framed(image: Tensor, special: SpecialIds) -> Tensor:
    ends = [torch.full_like(image[:, :1], token) for token in (special.soi, special.eoi)]
    return torch.cat([ends[0], image, ends[1]], dim=1)


# ---- the network (1.1, 1.2) ----------------------------------------------------------------------
def embedded(network: Showo, ids: Tensor, seen: Tensor | None) -> Tensor:
    """Embeddings [B, L, D] with the projected CLIP states in the slots of -100."""
    embeddings = network.embed(ids.clamp(min=0))
    if seen is None:
        return embeddings
    start = int((ids[0] == IGNORE).nonzero()[0])
    after = embeddings[:, start + seen.shape[1] :]
    return torch.cat([embeddings[:, :start], network.project(seen), after], dim=1)


def logits(network: Showo, embeddings: Tensor, allowed: Tensor) -> Tensor:
    """Logits [B, L, V] of all positions (7.4), with an additive mask and positions 0..L-1 (1.1)."""
    return network.head(network.hidden(inputs_embeds=embeddings, allowed=allowed))


# ---- one micro-batch (5) -------------------------------------------------------------------------
@dataclass(frozen=True)
class Given:
    """What a micro-batch reads: pixels [B, 3, side, side], ids of texts, and uniform draws t [B] and u [B, N].

    `labels` are those of the conversations' tokens; `dropout` [B] is drawn for text-to-image rows.
    """

    drawn: Tensor
    read: Tensor
    other: Tensor
    prompts: Ids
    conversations: Ids
    labels: Ids
    captions: Ids
    system: Sequence[int]
    t: Tensor
    u: Tensor
    other_t: Tensor
    other_u: Tensor
    dropout: Tensor


@dataclass(frozen=True)
class Encoded:
    """Codes [B, N] of targets, CLIP states [B, P, D] of RecA's images and of the conversations' images."""

    drawn: Tensor
    other: Tensor
    condition: Tensor
    read: Tensor


def encoded(config: ShowoConfig, frozen: FrozenEncoders, given: Given) -> Encoded:
    """The frozen encoders, which run in every micro-batch (7.5)."""
    condition = clip_condition(given.drawn, config.tower.image_size)
    return Encoded(
        codes(frozen, given.drawn),
        codes(frozen, given.other),
        clip_states(frozen.clip, condition),
        clip_states(frozen.clip, given.read),
    )


def losses(network: Showo, given: Given, found: Encoded, room: int) -> dict[str, Tensor]:
    """The three losses (5): one pass of text-to-image rows and conversations, then one of RecA's rows."""
    config = network.config
    special, slots, clips = config.ids, config.num_vq_tokens, config.clip_tokens
    # the text dropout (3.1)
    empty = [special.bos, special.eos]
    drops = (given.dropout < 0.1).tolist()
    captions = [empty if drop else c for c, drop in zip(given.captions, drops, strict=True)]
    image, labels = corrupted(found.other, given.other_t, given.other_u, special)
    other = text_to_image_ids(captions, image, special, room)
    # as long as the text-to-image rows of the batch (3.2)
    length = room - (clips - slots) - len(given.system)
    talk = conversation_ids(given.conversations, given.system, clips, length, special)
    embeddings = torch.cat([embedded(network, other, None), embedded(network, talk, found.read)])
    allowed = torch.cat([text_to_image_mask(other, special), conversation_mask(talk)])
    both = logits(network, embeddings, allowed)
    # i2t: the ordinary shift (3.2)
    answers = torch.full_like(talk, IGNORE)
    for row, marks in enumerate(given.labels):
        answers[row, -length:][: len(marks)] = torch.tensor(marks)[:length]
    i2t = F.cross_entropy(both[len(other) :, :-1].flatten(0, 1), answers[:, 1:].flatten())
    # t2i: from index M + 1 on, no shift (3.1)
    t2i = F.cross_entropy(
        both[: len(other), room + 1 :].flatten(0, 1), _framed(labels, special).flatten()
    )
    # RecA: input embeddings without gradient (5), the N slots without a shift (3.6)
    image, labels = corrupted(found.drawn, given.t, given.u, special)
    rows = reconstruction_ids(given.prompts, image, clips, config.head_text, special)
    with torch.no_grad():
        embeddings = embedded(network, rows, found.condition)
    every = logits(network, embeddings, reconstruction_mask(rows, slots, special))
    reca = F.cross_entropy(every[:, -1 - slots : -1].flatten(0, 1), labels.flatten())
    return {"reca": reca, "i2t": i2t, "t2i": t2i}


def total(found: dict[str, Tensor]) -> Tensor:
    """0 t2i + 1 i2t + 1 RecA (5); the row of weight 0 is differentiated, too (7.3)."""
    return 0.0 * found["t2i"] + 1.0 * found["i2t"] + 1.0 * found["reca"]


# ---- the sampler (4.2) ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Drawn:
    """Noise of a step: Exponential(1) [B, N, K] and uniform [B, N]."""

    exponential: Tensor
    uniform: Tensor


class Sampler:
    """The loop for prompts of one batch, framed by bos and eos; conditional and unconditional rows pass together."""

    def __init__(self, network: Showo, prompts: Ids, steps: int, guidance: float) -> None:
        self.network, self.steps, self.guidance = network, steps, guidance
        config = network.config
        self.special, self.slots = config.ids, config.num_vq_tokens
        start = torch.full((len(prompts), self.slots), self.special.mask)
        empty = [[self.special.bos, self.special.eos]] * len(prompts)
        self.ids = text_to_image_ids(
            [*prompts, *empty], start.repeat(2, 1), self.special, config.max_text
        )
        self.allowed = text_to_image_mask(self.ids, self.special)

    def step(
        self, number: int, image: Tensor, temperature: float, drawn: Drawn
    ) -> tuple[Tensor, Tensor, float]:
        """Codes [B, N] of step `number`, the ids [B, N] of the next one, and its temperature."""
        special, place = self.special, slice(-1 - self.slots, -1)
        # 1: all positions and the full vocabulary (7.14), then the image codes of the slots
        self.ids[:, place] = image.repeat(2, 1)
        every = logits(self.network, self.network.embed(self.ids), self.allowed)
        conditional, unconditional = every[:, place, special.codes].chunk(2)
        guided = (1 + self.guidance) * conditional - self.guidance * unconditional
        probabilities = guided.softmax(dim=-1)
        # 2: one code per slot; known slots keep theirs
        unknown = image == special.mask
        chosen = (probabilities / drawn.exponential).argmax(dim=-1)
        chosen = torch.where(unknown, chosen, image - special.first_image)
        # 3: how many stay masked
        ratio = (number + 1) / self.steps
        most = math.floor(self.slots * math.cos(math.pi / 2 * ratio))
        count = unknown.sum(dim=1, keepdim=True).sub(1).clamp(max=most).clamp(min=1)
        # 4: confidences; the temperature compounds
        picked = probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        picked = torch.where(unknown, picked, torch.finfo(picked.dtype).max)
        temperature = temperature * (1 - ratio)
        gumbel = -(-drawn.uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        confidence = picked.clamp(min=1e-20).log() + temperature * gumbel
        # 5: below the order statistic
        limit = confidence.sort(dim=-1).values.gather(1, count)
        again = confidence < limit
        return chosen, torch.where(again, special.mask, chosen + special.first_image), temperature

    @torch.no_grad()
    def __call__(self, noise: Iterator[Drawn]) -> Tensor:
        """Codes [B, N] of the last step."""
        image = torch.full((len(self.ids) // 2, self.slots), self.special.mask)
        temperature, chosen = 1.0, image
        for number, drawn in zip(range(self.steps), noise, strict=False):
            chosen, image, temperature = self.step(number, image, temperature, drawn)
        return chosen
