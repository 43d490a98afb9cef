"""Attention masks described per token; the dense mask and the tiles to visit are derived from it.

A batch is one packed row of T tokens. Each token has a `sample` (tokens see their own sample only), a
`block` (an image, a split) and a `kind`. Masks of all five model families are layouts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import accumulate
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Kind(IntEnum):
    """Role of a token in the mask: which queries of its sample see it as a key.

    HIDDEN: no query (padding); as a query it sees what a CAUSAL token at its position sees.
    PAD: PAD queries at its position or later; as a query it sees what a CAUSAL token there sees.
    CAUSAL: every query at its position or later (text).
    FULL: as CAUSAL, and all FULL tokens of its block (an image that is read or generated).
    OPEN: every query of the sample, earlier ones included (Show-o's condition).
    NOISE: all NOISE tokens of its block, and no others (BAGEL's noised image).
    """

    HIDDEN = 0
    PAD = 1
    CAUSAL = 2
    FULL = 3
    OPEN = 4
    NOISE = 5


class Tiles(NamedTuple):
    """Tiles to visit: outer tile i, tokens `firsts[i]..lasts[i]-1`, meets the tiles at `columns[starts[i]:stops[i]]`.

    `columns` holds the first token of each inner tile. In those before `middles[i]` every query sees every key, so they
    need no mask; in the others what lies beyond the tile is of another sample, or beyond the last token. All are int32.
    Every outer tile has room for all inner ones, so that no size depends on what is visible and no device has to be
    waited for. Those with most to visit come first: a long one that started last would leave the device idle.
    """

    firsts: Tensor
    lasts: Tensor
    starts: Tensor
    middles: Tensor
    stops: Tensor
    columns: Tensor


# From so many tiles per sample on, on average, tiles begin with their sample: fewer pairs are visited (BAGEL at 256 px,
# tiles of 128 by 64: 1.46 times the visible ones instead of 1.69), and 30 % of the tiles need a mask instead of 70 %.
_ALIGNED_FROM = 2
_BLOCKS = 1 << 28  # ids of blocks below this fit `tag`
_LONG = 2048  # tokens: BAGEL's samples at 256 px have 530, at 1024 px 4,370


@dataclass(frozen=True, eq=False)
class Layout:
    """Per token `sample`, `block` and `kind`, each int32 [T]; `sample` never decreases.

    `queries` (int32 [Q], ascending) holds the indices of the query tokens if not all tokens are queries;
    the keys of the others come from a cache. `lengths`: tokens of each sample, if the host knows them; tiles are
    chosen by them. Build one with `packed` or `batch`; ValueError if invalid.
    """

    sample: Tensor
    block: Tensor
    kind: Tensor
    queries: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    _cache: dict[object, Any] = field(default_factory=dict, repr=False)
    tag: Tensor = field(init=False, repr=False)
    """Block and kind as one number, int32 [T]: block * 8 + kind, the form that the kernels read."""
    query_positions: Tensor = field(init=False, repr=False)
    """Indices of the tokens that are queries, int32 [Q]."""

    def __post_init__(self) -> None:
        for name in ("sample", "block", "kind"):
            given = getattr(self, name)
            if given.dim() != 1 or given.dtype != torch.int32 or len(given) != len(self.sample):
                raise ValueError(
                    f"layout.{name} must be int32 [{len(self.sample)}], one per token, "
                    f"not {given.dtype} {list(given.shape)}"
                )
            object.__setattr__(self, name, given.contiguous())  # kernels read them without strides
        if self.queries is not None and (self.queries.dim(), self.queries.dtype) != (
            1,
            torch.int32,
        ):
            raise ValueError(
                f"layout.queries must be int32 [Q], not {self.queries.dtype} {list(self.queries.shape)}"
            )
        if self.lengths is not None and sum(self.lengths) != self.tokens:
            raise ValueError(
                f"layout.lengths add up to {sum(self.lengths)} tokens, but there are {self.tokens}"
            )
        positions = None if self.queries is None else self.queries.contiguous()
        if positions is None:
            positions = torch.arange(self.tokens, device=self.sample.device, dtype=torch.int32)
        object.__setattr__(self, "tag", self.block * 8 + self.kind)
        object.__setattr__(self, "query_positions", positions)
        if not torch.compiler.is_compiling():
            _LAYOUTS[positions] = weakref.ref(self)

    # ---- construction ----------------------------------------------------------------------------
    @classmethod
    def packed(
        cls, samples: Sequence[Sequence[tuple[Kind | str, int]]], device: torch.device | str = "cpu"
    ) -> Layout:
        """Layout of consecutive samples, each a list of (kind, length); every entry is a separate block.

        Example: `Layout.packed([[("full", 256), ("causal", 12), ("noise", 4098)]])`.
        """
        rows = [
            (number, block, _kind(kind), length)
            for number, splits in enumerate(samples)
            for block, (kind, length) in enumerate(splits)
        ]
        if any(length < 0 for *_, length in rows):
            raise ValueError("layout: a split has a negative length")
        table = torch.tensor([row[:3] for row in rows], dtype=torch.int32, device="cpu").view(-1, 3)
        lengths = torch.tensor([row[3] for row in rows], dtype=torch.long, device="cpu")
        sample, block, kind = table.repeat_interleave(lengths, dim=0).unbind(1)
        whole = tuple(sum(length for _, length in splits) for splits in samples)
        made = cls(sample.contiguous(), block.contiguous(), kind.contiguous(), lengths=whole)
        return made.to(device)

    @classmethod
    def batch(cls, kind: Tensor, block: Tensor | None = None) -> Layout:
        """Layout of a rectangular batch, one sample per row: `kind` [B, L], `block` [B, L] (default: kind).

        The tokens are `x.flatten(0, 1)` of a batch x [B, L, ...].
        """
        batch, length = kind.shape
        sample = torch.arange(batch, device=kind.device).repeat_interleave(length)
        block = kind if block is None else block
        # in a traced graph a layout is its tensors
        lengths = None if torch.compiler.is_compiling() else (length,) * batch
        return cls(sample.int(), block.flatten().int(), kind.flatten().int(), None, lengths)

    def with_queries(self, queries: Tensor) -> Layout:
        """The same keys, with only the tokens `queries` (indices [Q], ascending) as queries."""
        return replace(self, queries=queries.to(self.sample.device).int(), _cache={})

    def to(self, device: torch.device | str) -> Layout:
        """The layout on `device` (itself if it is there already), from main memory without a wait."""
        if self.sample.device == torch.device(device):
            return self
        from_host = self.sample.device.type == "cpu"

        def there(tokens: Tensor) -> Tensor:
            return tokens.to(device, non_blocking=from_host)

        queries = None if self.queries is None else there(self.queries)
        sample, block, kind = (there(one) for one in (self.sample, self.block, self.kind))
        moved = Layout(sample, block, kind, queries, self.lengths)
        if from_host:
            moved._cache["host"] = self
        return moved

    def cloned(self) -> Layout:
        """The layout with tensors of its own."""
        queries = None if self.queries is None else self.queries.clone()
        tokens = (self.sample.clone(), self.block.clone(), self.kind.clone())
        return Layout(*tokens, queries, self.lengths)

    def on_host(self) -> Layout:
        """The layout in main memory: itself, or what `to` was called on; else a copy, for which the host waits."""
        if self.sample.device.type == "cpu":
            return self
        return self.cached("host", lambda: self.to("cpu"))

    @property
    def known_on_host(self) -> bool:
        """Whether `on_host` returns without a wait for the device."""
        return self.sample.device.type == "cpu" or "host" in self._cache

    # ---- sizes -----------------------------------------------------------------------------------
    @property
    def tokens(self) -> int:
        """Number of keys, T."""
        return len(self.sample)

    @property
    def long(self) -> bool:
        """Whether samples are known to have thousands of tokens, on average: larger tiles are faster then."""
        lengths = self._known_lengths()
        return lengths is not None and len(lengths) * _LONG <= self.tokens

    def _known_lengths(self) -> Tensor | None:
        """Tokens of each sample, in main memory; None if the host would have to wait for the device."""
        if self.lengths is not None:
            counts = [one for one in self.lengths if one]
            return self.cached("lengths", lambda: torch.tensor(counts, device="cpu"))
        if not self.known_on_host:
            return None
        return self.cached("lengths", lambda: _lengths(self.on_host().sample))

    def cached(self, key: object, make: Callable[[], Any]) -> Any:
        """The result of `make()`, cached under `key` for the lifetime of the layout (shared by layers)."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def check(self) -> None:
        """Raise ValueError unless samples are contiguous, queries ascend, and blocks and kinds fit `tag`.

        On a GPU, whose answer the host would have to wait for, a violation stops the device's own work instead.
        """
        most = max(Kind)
        fits = (
            (self.kind >= 0)
            & (self.kind <= most)
            & (self.block < _BLOCKS)
            & (self.block >= -_BLOCKS)
        )
        _demand(
            fits.all(), f"layout: a block is not between -2^28 and 2^28, or a kind not in 0..{most}"
        )
        for name, values in (("sample", self.sample), ("queries", self.query_positions)):
            fault = (
                f"layout.{name} must {'ascend' if name == 'queries' else 'never decrease'}; "
                "put the tokens of a sample next to each other"
            )
            _demand((values.diff() >= (name == "queries")).all(), fault)
        if self.lengths is not None:
            begins = torch.zeros(self.tokens, dtype=torch.bool, device="cpu")
            begins[_starts(self.lengths, self.tokens)] = True
            right = ((self.sample.diff() != 0) == _moved(begins, self.sample.device)[1:]).all()
            _demand(
                right, "layout.lengths do not fit layout.sample; give the tokens of each sample"
            )

    # ---- derived quantities ----------------------------------------------------------------------
    def dense(self, queries: slice | None = None, keys: slice | None = None) -> Tensor:
        """The dense mask, bool [Q, T] (or a part of it): true where the query sees the key."""
        key = torch.arange(self.tokens, device=self.sample.device)[keys or slice(None)]
        return self.sees(self.query_positions[queries or slice(None)].long(), key)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether tokens see tokens, bool [..., Q, K], for their indices [..., Q] and [..., K]."""
        query, key = query.unsqueeze(-1), key.unsqueeze(-2)
        sample, tag = self.sample, self.tag
        kind_k, pads = self.kind[key], self.kind[query] == Kind.PAD
        passed = ((kind_k >= Kind.CAUSAL) & (kind_k <= Kind.OPEN)) | ((kind_k == Kind.PAD) & pads)
        seen = passed & (key <= query)
        seen |= (kind_k >= Kind.FULL) & (tag[key] == tag[query])
        seen |= kind_k == Kind.OPEN
        return seen & (sample[key] == sample[query])

    def tiles(self, rows: int, columns: int, by_key: bool = False) -> Tiles:
        """Tiles of `rows` queries by `columns` keys with a visible pair, listed per query tile.

        `by_key` lists them per key tile. Computed from the minimum and maximum of each tile,
        so a listed tile may be empty, but no tile with a visible pair is missing.
        """
        key = ("tiles", rows, columns, by_key)
        return self.cached(key, lambda: self._tiles(rows, columns, by_key))

    def _tiles(self, rows: int, columns: int, by_key: bool) -> Tiles:
        self.check()
        query = self.query_positions.long()
        place = torch.arange(self.tokens, device=query.device)
        cuts = self._aligned(rows, columns) or (
            _cut(len(query), rows, query.device), _cut(len(place), columns, query.device)
        )  # fmt: skip
        q = _Spans(query, self.sample[query], self.tag[query], rows, *cuts[0])
        k = _Spans(place, self.sample, self.tag, columns, *cuts[1]).across()
        some = (q.first_sample <= k.last_sample) & (k.first_sample <= q.last_sample)
        passed = (k.has_causal | (k.has_pad & q.has_pad)) & (k.first <= q.last)
        both_ways = (q.least_tag <= k.most_tag) & (k.least_tag <= q.most_tag)
        some = some & (passed | both_ways | k.has_open)
        alike = (q.first_sample == q.last_sample) & (k.first_sample == k.last_sample)
        alike = alike & (q.first_sample == k.first_sample) & (q.whole if by_key else k.whole)
        one_block = q.all_two_way & k.all_two_way & (q.least_tag == q.most_tag)
        one_block = one_block & (k.least_tag == k.most_tag) & (q.least_tag == k.least_tag)
        full = alike & (one_block | (k.all_causal & (k.last <= q.first)))
        outer, inner = cuts
        if by_key:
            some, full, outer, inner = some.T, full.T, inner, outer
        full, count = full & some, some.shape[1]
        # whole tiles first, then those with a mask, then the empty ones, each in ascending order
        order = torch.where(full, 0, torch.where(some, count, 2 * count)).int()
        order += torch.arange(count, device=some.device, dtype=torch.int32)
        listed = inner[0].int()[(order.sort(1).values % max(count, 1)).long()]
        starts = torch.arange(len(some), device=some.device, dtype=torch.int32) * count
        middles, stops = (starts + part.sum(1, dtype=torch.int32) for part in (full, some))
        heaviest = (stops - starts).argsort(descending=True, stable=True)
        firsts, lasts, starts, middles, stops = (
            one.int()[heaviest] for one in (*outer, starts, middles, stops)
        )
        return Tiles(firsts, lasts, starts, middles, stops, listed.flatten())

    def _aligned(self, rows: int, columns: int) -> tuple[Cut, Cut] | None:
        """First and last tokens of the tiles of queries and of keys that begin with their sample, if that pays."""
        keys = queries = self._known_lengths()  # their number depends on it
        if self.queries is not None:
            queries = None
            if self.known_on_host:
                host = self.on_host()
                queries = _lengths(host.sample[host.query_positions.long()])
        if keys is None or queries is None:
            return None
        for lengths, size in ((queries, rows), (keys, columns)):
            if int(lengths.sum()) < _ALIGNED_FROM * size * len(lengths):
                return None
        device = self.sample.device
        return _cut_samples(queries, rows, device), _cut_samples(keys, columns, device)


def _demand(right: Tensor, fault: str) -> None:
    if right.device.type == "cuda":
        torch._assert_async(right, fault)
    elif not bool(right):
        raise ValueError(fault)


Cut = tuple[Tensor, Tensor]


def _cut(count: int, size: int, device: torch.device) -> Cut:
    """First and last (exclusive) index of tiles of `size`, int64."""
    firsts = torch.arange(0, count, size, device=device)
    return firsts, (firsts + size).clamp(max=count)


def _cut_samples(lengths: Tensor, size: int, device: torch.device) -> Cut:
    """The same for tiles that begin with each of the samples, `lengths` in main memory."""
    tiles, stops = (lengths + size - 1) // size, lengths.cumsum(0)
    sample = torch.arange(len(lengths), device="cpu").repeat_interleave(tiles)
    number = torch.arange(len(sample), device="cpu") - (tiles.cumsum(0) - tiles)[sample]
    firsts = (stops - lengths)[sample] + number * size
    both = _moved(torch.stack([firsts, torch.minimum(firsts + size, stops[sample])]), device)
    return both[0], both[1]


def _lengths(sample: Tensor) -> Tensor:
    """How many tokens each sample has."""
    return sample.unique_consecutive(return_counts=True)[1]


def _starts(lengths: Sequence[int], tokens: int) -> list[int]:
    """Where samples begin."""
    return [start for start in accumulate(lengths, initial=0) if start < tokens]


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the main memory on `device`, without a wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


# An operator is given a layout's tensors only; by them it finds the layout again, with the lists that it keeps.
_LAYOUTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@overload
def layout_of(sample: Tensor, tag: Tensor, positions: Tensor) -> Layout: ...


@overload
def layout_of(sample: Tensor, tag: Tensor, positions: Tensor, *, known: bool) -> Layout | None: ...


def layout_of(
    sample: Tensor, tag: Tensor, positions: Tensor, *, known: bool = False
) -> Layout | None:
    """The living layout of these tensors, else one made from them (with `known`: None)."""
    found = _LAYOUTS.get(positions)
    layout = found() if found is not None else None
    if layout is not None and layout.sample is sample and layout.tag is tag:
        return layout
    if known:
        return None
    return Layout(sample, tag >> 3, tag & 7, positions)


class _Spans:
    """Minimum and maximum of each tile of tokens, as columns [tiles, 1]."""

    def __init__(
        self, place: Tensor, sample: Tensor, tag: Tensor, size: int, firsts: Tensor, lasts: Tensor
    ) -> None:
        step = torch.arange(size, device=place.device)
        index = torch.minimum(firsts.unsqueeze(1) + step, lasts.unsqueeze(1) - 1)
        place, sample, tag = place[index], sample[index], tag[index]
        kind = tag % 8
        causal, two_way = (kind >= Kind.CAUSAL) & (kind <= Kind.OPEN), kind >= Kind.FULL
        limits = torch.iinfo(tag.dtype)
        self.first, self.last = place[:, :1], place[:, -1:]
        self.first_sample, self.last_sample = sample[:, :1], sample[:, -1:]
        self.least_tag = tag.masked_fill(~two_way, limits.max).amin(1, keepdim=True)
        self.most_tag = tag.masked_fill(~two_way, limits.min).amax(1, keepdim=True)
        self.all_two_way = two_way.all(1, keepdim=True)
        self.has_causal, self.all_causal = causal.any(1, keepdim=True), causal.all(1, keepdim=True)
        self.has_pad = (kind == Kind.PAD).any(1, keepdim=True)
        self.has_open = (kind == Kind.OPEN).any(1, keepdim=True)
        self.whole = (lasts - firsts == size).unsqueeze(1)

    def across(self) -> _Spans:
        """Minimum and maximum of each tile of tokens, as rows [1, tiles]."""
        for name, value in vars(self).items():
            setattr(self, name, value.T)
        return self


def _kind(kind: Kind | str) -> int:
    if isinstance(kind, Kind):
        return int(kind)
    names = [k.name.lower() for k in Kind]
    if kind not in names:
        raise ValueError(f"layout: kind {kind!r} is unknown; choose one of: {', '.join(names)}")
    return names.index(kind)
