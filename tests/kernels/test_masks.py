"""Every mask of the five families is a layout (Show-o's are compared in tests/reference as well)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reca_kernels import Kind, Layout
from safetensors.torch import load_file
from torch import Tensor

from reca.models.bagel.layout import Packed
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
    # RecA samples of BAGEL at 256 pixels: each has the tiles that it has alone, most of them without a mask
    splits = [("full", 258), ("causal", 14), ("noise", 258)]
    alone, pack = (Layout.packed([splits] * n).tiles(128, 64) for n in (1, 3))
    visited = int((alone.stops - alone.starts).sum())
    assert visited == 37  # 5 for each tile of the image that is read, 9 for each of the others
    assert int((pack.stops - pack.starts).sum()) == 3 * visited
    assert int((pack.middles - pack.starts).sum()) >= 0.7 * 3 * visited


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
    if by_key:
        dense, rows, columns = dense.T, columns, rows
    outer = len(dense)
    visits, filled, needless = torch.zeros_like(dense).int(), 0, 0
    counts = (tiles.stops - tiles.starts).tolist()
    assert counts == sorted(counts, reverse=True), "the heaviest tile does not come first"
    owned = [torch.arange(a, b) for a, b in zip(tiles.firsts, tiles.lasts, strict=True)]
    assert torch.equal(torch.cat(owned).sort().values, torch.arange(outer)), "no partition"
    for mine, start, middle, stop in zip(owned, *tiles[2:5], strict=True):
        assert 0 < len(mine) <= rows
        for j in range(start, stop):
            first = int(tiles.columns[j])
            part = dense[mine, first : first + columns]
            visits[mine, first : first + columns] += 1
            filled, needless = filled + int(part.any()), needless + int(not part.any())
            if j < middle:
                assert part.all() and part.shape[1] == columns, "no mask, but something is hidden"
    assert (visits[dense] == 1).all(), "a visible pair is not visited once"
    assert needless <= 4 + filled // 2, "too many needless tiles"


def test_long_samples_are_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """BAGEL's at 1024 px are, at 256 px not; where the host would have to wait for the device to know, none is."""
    assert Layout.packed([[("full", 258), ("causal", 14), ("noise", 4098)]] * 2).long
    assert not Layout.packed([[("full", 258), ("causal", 14), ("noise", 258)]] * 20).long
    monkeypatch.setattr(Layout, "known_on_host", False)
    assert Layout.packed([[("noise", 4098)]]).long
    ones = torch.ones(4098, dtype=torch.int32)
    assert not Layout(ones, ones, ones).long


def test_tiles_begin_with_their_sample_if_the_host_knows_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = Layout.packed([[("full", 40)], [("causal", 50)]])
    assert sorted(layout.tiles(16, 16).firsts.tolist()) == [0, 16, 32, 40, 56, 72, 88]
    assert sorted(layout.tiles(16, 32).firsts.tolist()) == [0, 16, 32, 48, 64, 80]  # short ones
    monkeypatch.setattr(Layout, "known_on_host", False)
    assert sorted(layout.with_queries(torch.arange(90)).tiles(16, 16).firsts.tolist()) == [
        0, 16, 32, 48, 64, 80,
    ]  # fmt: skip


def test_lengths_of_samples_need_not_be_read_from_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Layout, "known_on_host", False)
    sample = torch.tensor([0] * 40 + [1] * 50, dtype=torch.int32)
    layout = Layout(sample, sample, sample * 0 + Kind.FULL, lengths=(40, 50))
    assert sorted(layout.tiles(16, 16).firsts.tolist()) == [0, 16, 32, 40, 56, 72, 88]
    assert layout.to("cpu").lengths == (40, 50)
    with pytest.raises(ValueError, match="add up to 91"):
        Layout(sample, sample, sample, lengths=(40, 51))
    with pytest.raises(ValueError, match="lengths do not fit"):
        Layout(sample, sample, sample, lengths=(41, 49)).tiles(16, 16)


def test_the_models_layouts_have_lengths() -> None:
    """On a GPU their tensors are there, too, and nothing else says where samples begin."""
    roles = torch.ones(3, 17, dtype=torch.long)
    assert ShowoLayout(roles, roles, roles, roles, True, True).blocks().lengths == (17, 17, 17)
    tokens = {name: torch.zeros(5, dtype=torch.long) for name in ("split", "mode")}
    pack = SimpleNamespace(sample=torch.tensor([0, 0, 1, 1, 1]), sample_lengths=(2, 3), **tokens)
    assert Packed.layout(pack).lengths == (2, 3)
