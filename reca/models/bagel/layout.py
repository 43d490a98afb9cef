"""Samples as lists of splits, and packs of samples: token order, rope ids, attention mask, loss positions.

Source: docs/reference/bagel.md 2. Letters: S tokens of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from reca_kernels import Kind
from reca_kernels import Layout as BlockLayout
from torch import Tensor

from reca.models.bagel.batch import Condition
from reca.models.bagel.config import BagelConfig, SpecialIds
from reca.models.bagel.vision import position_ids
from reca.models.common.batching import moved

Mode = Literal["causal", "full", "noise"]
MODES: tuple[Mode, ...] = ("causal", "full", "noise")


@dataclass(frozen=True)
class Split:
    """One split of a sample. `vit` and `vae` have a `grid` (rows, columns) of patches, `text` has `ids`.

    `target`: the model is trained on it (an answer, or the generated image). `dropped`: omitted, as in training for
    guidance; an image still advances the rope id.
    """

    kind: Literal["text", "vit", "vae"]
    ids: tuple[int, ...] = ()
    grid: tuple[int, int] = (0, 0)
    target: bool = False
    dropped: bool = False

    @property
    def mode(self) -> Mode:
        """How its tokens attend to each other, and which tokens attend to them."""
        if self.kind == "text":
            return "causal"
        return "noise" if self.kind == "vae" and self.target else "full"

    @property
    def inner(self) -> int:
        """Number of tokens between the two markers."""
        return len(self.ids) if self.kind == "text" else self.grid[0] * self.grid[1]

    @property
    def advance(self) -> int:
        """Increment of the rope id after the split."""
        if self.kind == "text":
            return 0 if self.dropped else self.inner + 2
        return 0 if self.mode == "noise" else 1


@dataclass(frozen=True)
class Packed:
    """Several samples in sequence. `*_at` are positions in the pack; the other fields hold their content.

    `positions`, `sample`, `split`, `mode`: per token [S]. Text covers BOS, EOS and image markers.
    """

    text_ids: Tensor
    text_at: Tensor
    vit_ids: Tensor
    vit_at: Tensor
    latent_ids: Tensor
    latent_at: Tensor
    mse_at: Tensor
    ce_at: Tensor
    labels: Tensor
    label_weights: Tensor
    positions: Tensor
    sample: Tensor
    split: Tensor
    mode: Tensor
    sample_lengths: tuple[int, ...]
    split_lengths: tuple[int, ...]
    split_modes: tuple[int, ...]

    def layout(self) -> BlockLayout:
        """Which token sees which: text what stands before it, pictures themselves too, noise only its own."""
        kinds = moved(torch.tensor([Kind[mode.upper()] for mode in MODES]), self.mode.device)
        tokens = (self.sample.int(), self.split.int(), kinds[self.mode].int())
        return BlockLayout(*tokens, lengths=self.sample_lengths)


def framed(ids: Sequence[int], special: SpecialIds) -> list[int]:
    """A text as BOS, ids, EOS."""
    return [special.bos, *ids, special.eos]


class _Packer:
    """Collects the tokens of a pack, split by split."""

    def __init__(self, special: SpecialIds, vit_side: int, latent_side: int) -> None:
        self.special, self.sides = special, {"vit": vit_side, "vae": latent_side}
        self.at: dict[str, list[int]] = {k: [] for k in ("text", "vit", "vae", "mse", "ce")}
        self.ids: dict[str, list[int]] = {k: [] for k in ("text", "vit", "vae")}
        self.labels: list[int] = []
        self.weights: list[float] = []
        self.rows: list[tuple[int, int, int, int]] = []  # position, sample, split, mode
        self.splits: list[tuple[int, int]] = []  # length, mode
        self.lengths: list[int] = []

    def sample(self, splits: Sequence[Split]) -> None:
        """Append a sample."""
        before, rope = len(self.rows), 0
        for split in splits:
            if not split.dropped:
                self._split(split, rope)
            rope += split.advance
        self.lengths.append(len(self.rows) - before)

    def _split(self, split: Split, rope: int) -> None:
        start, length = len(self.rows), split.inner + 2
        inner = range(start + 1, start + 1 + split.inner)
        if split.kind == "text":
            self._text(framed(split.ids, self.special), range(start, start + length))
        else:
            self._text(
                [self.special.start_of_image, self.special.end_of_image], [start, inner.stop]
            )
            self.at[split.kind] += inner
            self.ids[split.kind] += position_ids(split.grid, self.sides[split.kind]).tolist()
        if split.target and split.kind == "text":
            self.at["ce"] += range(start, start + length - 1)
            self.labels += [*split.ids, self.special.eos]
            self.weights += [(length - 1) ** -0.5] * (length - 1)
        elif split.target:
            self.at["mse"] += inner
        mode = MODES.index(split.mode)
        step = 1 if split.kind == "text" else 0
        number = len(self.splits)
        self.rows += [
            (rope + step * offset, len(self.lengths), number, mode) for offset in range(length)
        ]
        self.splits.append((length, mode))

    def _text(self, ids: Sequence[int], at: Sequence[int]) -> None:
        self.ids["text"] += ids
        self.at["text"] += at

    def packed(self) -> Packed:
        """Convert the pack to tensors."""
        rows = torch.tensor(self.rows, dtype=torch.long).view(-1, 4)
        at, ids = (
            {name: torch.tensor(found, dtype=torch.long) for name, found in lists.items()}
            for lists in (self.at, self.ids)
        )
        labels, weights = torch.tensor(self.labels, dtype=torch.long), torch.tensor(self.weights)
        position, sample, split, mode = rows.unbind(1)
        lengths, modes = zip(*self.splits, strict=True)
        # fmt: off
        return Packed(
            ids["text"], at["text"], ids["vit"], at["vit"], ids["vae"], at["vae"], at["mse"], at["ce"],
            labels, weights, position, sample, split, mode, tuple(self.lengths), lengths, modes,
        )
        # fmt: on


def pack(
    samples: Sequence[Sequence[Split]], special: SpecialIds, vit_side: int, latent_side: int
) -> Packed:
    """Pack samples; `*_side` are the sides of the two position tables."""
    packer = _Packer(special, vit_side, latent_side)
    for sample in samples:
        packer.sample(sample)
    return packer.packed()


def generation_pack(condition: Condition, config: BagelConfig) -> Packed:
    """The pack of a generation loss, one sample per row: input image, text, image to generate."""
    goal = Split("vae", grid=(config.latent_side, config.latent_side), target=True)
    samples = []
    for row, text in enumerate(condition.texts):
        sample = [] if condition.seen is None else [_seen(condition, row, config)]
        if text is not None:
            sample.append(Split("text", tuple(text)))
        samples.append([*sample, goal])
    return pack(samples, config.special, config.vit_max_num_patch_per_side, config.max_latent_size)


def _seen(condition: Condition, row: int, config: BagelConfig) -> Split:
    if condition.grid is not None:
        high, wide = condition.grid[row].tolist()
        return Split("vit", grid=(high, wide))
    assert condition.seen is not None
    high, wide = (n // config.latent_patch_size for n in condition.seen.shape[-2:])
    return Split("vae", grid=(high, wide))
