"""Every mask of the five families is a layout (Show-o's are compared in tests/reference as well)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reca_kernels import Kind, Layout
from safetensors.torch import load_file
from torch import Tensor

from reca.models.showo.layout import Layout as ShowoLayout

# The mask tensors alone of the golden cases of four families, as `family:case:tensor`
STORED = load_file(Path(__file__).parent / "golden_masks.safetensors")
KEY_MASKS = [name for name in STORED if name.rpartition("/")[2].endswith("attention_mask")]
KEY_MASKS = [name for name in KEY_MASKS if not name.startswith("bagel")]
SPLITS = [name for name in STORED if name.endswith("split_lens")]
MODES = ("causal", "full", "noise")


def test_all_families_are_here() -> None:
    assert {name.split(":")[0] for name in STORED} == {"bagel", "harmon", "janus", "openuni"}
    assert len(SPLITS) >= 3 and len(KEY_MASKS) >= 10


def causal_over(keys: Tensor) -> Tensor:
    """A stored key mask [B, L] with plain causality: what transformers makes of it, [B, L, L]."""
    length = keys.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril() & keys.bool().unsqueeze(1)


def by_sample(layout: Layout, batch: int) -> Tensor:
    """The dense mask as [B, L, L], after a look that samples do not see each other."""
    dense = layout.dense()
    length = layout.tokens // batch
    blocks = dense.view(batch, length, batch, length)
    same = torch.eye(batch, dtype=torch.bool)
    assert not blocks.transpose(1, 2)[~same].any()
    return torch.stack([blocks[i, :, i] for i in range(batch)])


@pytest.mark.parametrize("name", KEY_MASKS)
def test_key_masks_of_harmon_openuni_and_janus(name: str) -> None:
    keys = STORED[name]
    kind = torch.where(keys.bool(), int(Kind.CAUSAL), int(Kind.HIDDEN))
    layout = Layout.batch(kind)
    assert torch.equal(by_sample(layout, len(keys)), causal_over(keys))


def test_harmons_cached_prefix() -> None:
    # step k of the sampler has the visible tokens as queries, after a prompt with padding in its middle
    prompt = STORED["harmon:sample_step_cfg:attention_mask"]
    keys = STORED["harmon:sample_step_cfg:step0/llm_attention_mask"]
    batch, length, first = *keys.shape, prompt.shape[1]
    kind = torch.where(keys.bool(), int(Kind.CAUSAL), int(Kind.HIDDEN))
    queries = torch.arange(batch * length).view(batch, length)[:, first:]
    dense = Layout.batch(kind).with_queries(queries.flatten()).dense()
    whole = causal_over(keys)[:, first:]
    for row, expected in enumerate(whole):
        rows = slice(row * (length - first), (row + 1) * (length - first))
        assert torch.equal(dense[rows, row * length : (row + 1) * length], expected)
        assert dense[rows].sum() == expected.sum()


@pytest.mark.parametrize("name", SPLITS)
def test_packs_of_bagel(name: str) -> None:
    case = name.removesuffix("split_lens")
    splits = STORED[name].tolist()
    modes = [MODES[code] for code in STORED[case + "attn_mode_codes"].tolist()]
    samples: list[list[tuple[str, int]]] = []
    pack: list[tuple[str, int]] = []
    lengths = [len(t) for n, t in STORED.items() if n.startswith(case + "attention_mask_")]
    for mode, length in zip(modes, splits, strict=True):
        pack.append((mode, length))
        if sum(n for _, n in pack) == lengths[len(samples)]:
            samples.append(pack)
            pack = []
    assert not pack and len(samples) == len(lengths)
    dense = Layout.packed(samples).dense()
    expected = torch.block_diag(
        *[STORED[f"{case}attention_mask_{i}"].int() for i in range(len(lengths))]
    )
    assert torch.equal(dense, expected.bool())


@pytest.mark.parametrize("open_condition", [False, True])
@pytest.mark.parametrize("hidden_pads", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_any_roles_of_showo(seed: int, open_condition: bool, hidden_pads: bool) -> None:
    # the roles in any order, also in orders that no recipe has
    draw = torch.Generator().manual_seed(seed)
    roles = torch.randint(0, 4, (3, 17), generator=draw)
    ids = torch.zeros_like(roles)
    layout = ShowoLayout(ids, roles, ids, ids, open_condition, hidden_pads)
    assert torch.equal(by_sample(layout.blocks(), 3), layout.allowed())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 64)])
def test_tiles_miss_nothing(seed: int, size: tuple[int, int]) -> None:
    layout = drawn_layout(seed)
    chosen = torch.randperm(layout.tokens, generator=torch.Generator().manual_seed(seed))
    partial = layout.with_queries(chosen[: layout.tokens // 2].sort().values)
    for one in (layout, partial):
        for by_key in (False, True):
            check_tiles(one, *size, by_key)


def test_tiles_of_a_long_pack() -> None:
    # two RecA samples of BAGEL at 256 pixels: within a tenth of the tiles that hold a visible pair
    splits = [("full", 258), ("causal", 14), ("noise", 258)]
    layout = Layout.packed([splits, splits])
    tiles, dense = layout.tiles(64, 64), layout.dense()
    padded = torch.nn.functional.pad(dense, (0, -len(dense) % 64, 0, -len(dense) % 64))
    some = padded.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).any(3).any(1)
    assert int(some.sum()) <= int((tiles.stops - tiles.starts).sum()) <= 1.1 * int(some.sum())


def drawn_layout(seed: int) -> Layout:
    draw = torch.Generator().manual_seed(seed)
    names = [kind.name.lower() for kind in Kind]
    samples = []
    for _ in range(3):
        kinds = torch.randint(0, 6, (4,), generator=draw).tolist()
        lengths = torch.randint(0, 60, (4,), generator=draw).tolist()
        samples.append([(names[k], n) for k, n in zip(kinds, lengths, strict=True)])
    return Layout.packed(samples)


def check_tiles(layout: Layout, rows: int, columns: int, by_key: bool) -> None:
    tiles, dense = layout.tiles(rows, columns, by_key), layout.dense()
    queries, keys = dense.shape
    height, width = -(-queries // rows), -(-keys // columns)
    # rows after the last are never stored, so they may count as visible; keys after the last may not
    some, full = torch.zeros(height, width).bool(), torch.zeros(height, width).bool()
    for i in range(height):
        for j in range(width):
            part = dense[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            some[i, j] = part.any()
            full[i, j] = part.all() and part.shape[1] == columns
    if by_key:
        some, full = some.T, full.T
    listed = torch.zeros_like(some)
    for i, (start, stop) in enumerate(zip(tiles.starts, tiles.stops, strict=True)):
        found = tiles.columns[start:stop].long()
        unmasked = tiles.columns[start : tiles.middles[i]].long()
        assert len(found.unique()) == len(found)
        listed[i, found] = True
        assert full[i, unmasked].all(), "a tile without a mask hides something"
    assert listed[some].all(), "a visible pair lies in no listed tile"
    assert int((listed & ~some).sum()) <= 4 + int(some.sum()) // 2, "too many needless tiles"
