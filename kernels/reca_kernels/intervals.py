"""Splits a layout for the torch implementation: intervals of queries that see one range of keys.

An interval whose range is fully visible or causal needs no mask, and keys outside the range are not
multiplied. Measured on one core, fp32, forward and backward, against one SDPA with the dense
mask (docs/results/kernels/cpu.csv, from perf/kernels/run.py): 1.25 to 1.3 times as fast from
about 400 tokens; shorter sequences become one interval and take as long. flex_attention has no
backward pass on a CPU, and its forward pass is 10 to 200 times as slow there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from reca_kernels.layout import Layout

# query-key pairs that cost as much as one more call; short sequences become one interval
_CALL = 8192
# query-key pairs whose visibility is computed at once: some tens of MB of intermediate results
_PAIRS = 1 << 22


@dataclass(frozen=True)
class Interval:
    """Rows of a sample, the columns visible to them, and the additive mask if one is needed.

    `mask` [B or 1, 1, rows, columns]: 0 or -inf; None if all columns are visible or `causal` is set.
    """

    rows: slice
    columns: slice
    mask: Tensor | None
    causal: bool

    def to(self, device: torch.device) -> Interval:
        """The interval with its mask on `device`, copied without a wait."""
        if self.mask is None:
            return self
        mask = self.mask.pin_memory() if torch.cuda.is_available() else self.mask
        return replace(self, mask=mask.to(device, non_blocking=True))

    def seen(self, number: int) -> Tensor:
        """Which columns each row of sample `number` of the group sees, bool [rows, columns]."""
        if self.mask is not None:
            return self.mask[min(number, len(self.mask) - 1), 0] == 0
        shape = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)
        seen = torch.ones(shape, dtype=torch.bool)
        return seen.tril() if self.causal else seen


@dataclass(frozen=True)
class Group:
    """Adjacent samples with equal numbers of queries and keys, which run as one batch."""

    first_query: int
    first_key: int
    batch: int
    rows: int
    columns: int
    intervals: tuple[Interval, ...]

    def to(self, device: torch.device) -> Group:
        """The group with its masks on `device`."""
        return replace(self, intervals=tuple(one.to(device) for one in self.intervals))


def intervals(layout: Layout, dtype: torch.dtype) -> list[Group]:
    """The intervals of a layout, in groups, with masks of type `dtype`; computed once per layout."""
    return layout.cached(("intervals", dtype), lambda: _on_device(layout, dtype))


def _on_device(layout: Layout, dtype: torch.dtype) -> list[Group]:
    """Found in main memory: on a GPU every question about a mask would be a wait."""
    host = layout.on_host()
    groups, device = _intervals(host, dtype), layout.sample.device
    return groups if host is layout else [group.to(device) for group in groups]


def _intervals(layout: Layout, dtype: torch.dtype) -> list[Group]:
    layout.check()
    samples, columns = layout.sample.unique_consecutive(return_counts=True)
    query_samples = layout.sample[layout.query_positions.long()].unsqueeze(0)
    rows = (query_samples == samples.unsqueeze(1)).sum(1)
    groups: list[Group] = []
    first_query = first_key = 0
    sizes = list(zip(rows.tolist(), columns.tolist(), strict=True))
    while sizes:
        size, batch = sizes[0], 1
        while batch < len(sizes) and sizes[batch] == size:
            batch += 1
        if size[0]:
            found = _group_intervals(layout, first_query, first_key, batch, *size, dtype)
            groups.append(Group(first_query, first_key, batch, *size, found))
        first_query, first_key = first_query + batch * size[0], first_key + batch * size[1]
        sizes = sizes[batch:]
    return groups


def _group_intervals(
    layout: Layout,
    first_query: int,
    first_key: int,
    batch: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
) -> tuple[Interval, ...]:
    query = layout.query_positions[first_query : first_query + batch * rows].long()
    key = torch.arange(first_key, first_key + batch * columns, device=query.device)
    together = max(1, _PAIRS // (rows * columns))
    parts = zip(
        query.view(batch, rows).split(together),
        key.view(batch, columns).split(together),
        strict=True,
    )
    seen = torch.cat([layout.sees(*part) for part in parts])
    if batch > 1 and bool((seen == seen[:1]).all()):
        seen = seen[:1]
    anyone = seen.any(0)
    place = torch.arange(columns, device=seen.device)
    least = torch.where(anyone, place, columns).amin(1)
    most = torch.where(anyone, place + 1, 0).amax(1)
    tags = layout.tag[query]
    changes = (tags.view(batch, rows).diff() != 0).any(0).nonzero().squeeze(1) + 1
    bounds = [0, *changes.tolist(), rows]
    spans = [(a, b, int(least[a:b].min()), int(most[a:b].max())) for a, b in pairwise(bounds)]
    return tuple(_interval(seen, span, dtype) for span in _merged(spans))


def _merged(spans: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Merge neighbours while that is cheaper than another call."""

    def cost(span: tuple[int, int, int, int]) -> int:
        return (span[1] - span[0]) * max(span[3] - span[2], 0) + _CALL

    changed = True
    while changed:
        changed = False
        kept = spans[:1]
        for span in spans[1:]:
            last = kept[-1]
            both = (last[0], span[1], min(last[2], span[2]), max(last[3], span[3]))
            if cost(both) <= cost(last) + cost(span):
                kept[-1], changed = both, True
            else:
                kept.append(span)
        spans = kept
    return spans


def _interval(seen: Tensor, span: tuple[int, int, int, int], dtype: torch.dtype) -> Interval:
    """The interval of `span` (row start, row stop, column start, column stop) of `seen` [B, Q, T]."""
    start, stop, least, most = span
    least = min(least, most - 1) if most else 0
    most = max(most, 1)  # rows without a visible key keep one masked key, and output 0
    rows, columns = slice(start, stop), slice(least, most)
    part = seen[:, rows, columns]
    if bool(part.all()):
        return Interval(rows, columns, None, False)
    square = part.shape[1] == part.shape[2]
    if square and bool((part == torch.ones_like(part[0]).tril()).all()):
        return Interval(rows, columns, None, True)
    mask = torch.zeros(part.shape, dtype=dtype, device=part.device)
    return Interval(rows, columns, mask.masked_fill_(~part, float("-inf")).unsqueeze(1), False)
