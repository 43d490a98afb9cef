"""Block attention: errors against the dense definition, edges, equal bits."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import pytest
import torch
from reca_kernels import Kind, Layout, block_attention, library
from reca_kernels.intervals import intervals
from reca_kernels.selfcheck import plain_attention
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.kernels.cases import DEVICE, REPEATED, TYPES, assert_no_worse, normal, seed_of

BOTH = ("torch", "triton")
PACKS = {
    "causal": [[("causal", 37)]],
    "one token": [[("causal", 1)]],
    "full": [[("full", 33)]],
    "Show-o draws": [[("pad", 7), ("causal", 9), ("full", 20)], [("pad", 3), ("causal", 13), ("full", 20)]],
    "Show-o reads": [[("causal", 3), ("open", 30), ("causal", 8), ("pad", 4)]] * 2,
    "Show-o RecA": [[("causal", 2), ("open", 19), ("causal", 5), ("hidden", 9), ("full", 18)]],
    "BAGEL": [[("full", 18), ("causal", 5), ("noise", 23)], [("full", 11), ("noise", 30)]],
    "BAGEL edits": [[("full", 9), ("full", 17), ("causal", 4), ("noise", 13), ("causal", 6)]],
    "nobody": [[("hidden", 12)], [("causal", 8)]],
    "samples of one": [[("causal", 1)]] * 5,
    "long run": [[("causal", 50), ("noise", 40), ("full", 35)]],
}  # fmt: skip
HEADS = {"torch": ((1, 1, 1), (4, 2, 8), (3, 3, 24), (6, 2, 40)), "triton": ((2, 1, 24),)}
CASES = [
    (implementation, name, heads)
    for implementation in BOTH
    for name in PACKS
    for heads in HEADS[implementation]
]


def check(implementation: str, layout: Layout, heads: tuple[int, int, int], scale: float) -> None:
    (of_queries, of_keys, width), queries = heads, len(layout.query_positions)
    seed = seed_of(heads, layout.tokens)
    dtype = TYPES[seed % 3]
    assert_no_worse(
        lambda q, k, v: block_attention(
            q, k, v, layout, scale=scale, implementation=implementation
        ),
        lambda q, k, v: plain_attention(q, k, v, layout.dense(), scale),
        q=normal(dtype, queries, of_queries, width, seed=seed),
        k=normal(dtype, layout.tokens, of_keys, width, seed=seed + 1),
        v=normal(dtype, layout.tokens, of_keys, width, seed=seed + 2),
    )


@pytest.mark.parametrize(("implementation", "name", "heads"), CASES, ids=str)
def test_errors(implementation: str, name: str, heads: tuple[int, int, int]) -> None:
    layout = Layout.packed(PACKS[name], DEVICE)
    check(implementation, layout, heads, 0.5 / math.sqrt(heads[2]))


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_queries_with_keys_from_a_cache(implementation: str, seed: int) -> None:
    layout = Layout.packed(PACKS["Show-o draws"] + PACKS["BAGEL"], DEVICE)
    draw = torch.Generator().manual_seed(seed)
    queries = torch.randperm(layout.tokens, generator=draw)[: 1 + 25 * seed].sort().values
    check(implementation, layout.with_queries(queries), (2, 1, 16), 0.25)


@pytest.mark.parametrize("call", [0, 2**30])
def test_runs_may_be_cut_anywhere(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # a call that costs nothing leaves every run alone; one that costs much joins all
    monkeypatch.setattr("reca_kernels.intervals._CALL", call)
    for pack in PACKS.values():
        layout = Layout.packed(pack, DEVICE)
        most = max(len(group.intervals) for group in intervals(layout, torch.float32))
        assert most == 1 if call else most >= 1
        check("torch", layout, (4, 2, 8), 0.2)


def test_masks_of_many_samples_may_be_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 6, (7, 12), generator=draw)
    masks = []
    for pairs in (1, 3 * 12 * 12, 1 << 22):
        monkeypatch.setattr("reca_kernels.intervals._PAIRS", pairs)
        (group,) = intervals(Layout.batch(kinds), torch.float32)
        masks.append([group.intervals[0].seen(number) for number in range(7)])
    layout = Layout.batch(kinds)
    for number, seen in enumerate(masks[0]):
        part = slice(12 * number, 12 * (number + 1))
        assert torch.equal(seen, layout.dense(part, part)[:, group.intervals[0].columns])
        assert all(torch.equal(seen, other[number]) for other in masks[1:])


@pytest.mark.parametrize("implementation", BOTH)
def test_rows_that_see_nothing_give_zero(implementation: str) -> None:
    layout = Layout.packed([[("hidden", 5), ("causal", 3)], [("hidden", 20)]], DEVICE)
    leaves = [normal(torch.float32, 28, 2, 16, seed=i).requires_grad_() for i in range(3)]
    out = block_attention(*leaves, layout, implementation=implementation)
    blind = [0, 1, 2, 3, 4, *range(8, 28)]
    assert (out[blind] == 0).all() and (out[5:8] != 0).all()
    for gradient in torch.autograd.grad(out.sum(), leaves):
        assert (gradient[blind] == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("implementation", BOTH)
def test_no_tokens_and_no_queries(implementation: str) -> None:
    empty = torch.zeros(0, 2, 16, device=DEVICE, requires_grad=True)
    layout = Layout.packed([[]], DEVICE)
    block_attention(empty, empty, empty, layout, implementation=implementation).sum().backward()
    assert empty.grad is not None and empty.grad.shape == (0, 2, 16)
    layout = Layout.packed([[("causal", 4)]], DEVICE).with_queries(
        torch.zeros(0, dtype=torch.int32)
    )
    keys = normal(torch.float32, 4, 2, 16)
    assert block_attention(empty, keys, keys, layout, implementation=implementation).shape[0] == 0


@pytest.mark.parametrize("implementation", BOTH)
def test_views(implementation: str) -> None:
    """q, k, v as slices of one projection, as transposed heads, as an expanded head."""
    layout = Layout.packed(PACKS["BAGEL"], DEVICE)
    tokens = layout.tokens
    q, k, v = normal(torch.float32, tokens, 2, 3, 16).unbind(2)
    views = [
        (q, k, v),
        tuple(normal(torch.float32, 2, tokens, 16, seed=i).transpose(0, 1) for i in range(3)),
        (q, k[:, :1].expand(tokens, 2, 16), v),
        (q, k, normal(torch.float32, 2, 16, tokens).permute(2, 0, 1)),
    ]
    for given in views:
        assert_no_worse(
            lambda q, k, v: block_attention(q, k, v, layout, implementation=implementation),
            lambda q, k, v: plain_attention(q, k, v, layout.dense(), 0.25),
            **dict(zip("qkv", given, strict=True)),
        )


@pytest.mark.parametrize("implementation", BOTH)
def test_layouts_of_views_are_read_as_they_are(implementation: str) -> None:
    """Kernels read a layout's tensors without strides."""
    layout = Layout.packed(PACKS["BAGEL"], DEVICE)
    every = torch.arange(layout.tokens, dtype=torch.int32, device=DEVICE)
    twice = [t.repeat_interleave(2) for t in (layout.sample, layout.block, layout.kind)]
    one = torch.zeros(1, dtype=torch.int32, device=DEVICE).expand(24)
    causal = torch.ones(24, dtype=torch.int32, device=DEVICE)
    for given in (
        Layout(*(t[::2] for t in twice), lengths=layout.lengths),
        Layout(one, one, causal),
        layout.with_queries(every[::2]),
    ):
        check(implementation, given, (2, 1, 16), 0.25)


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("first", [-1, -3, 2**28 - 3])
def test_blocks_may_have_any_ids(implementation: str, first: int) -> None:
    layout = Layout.packed(PACKS["BAGEL"], DEVICE)
    check(implementation, replace(layout, block=layout.block + first), (2, 1, 16), 0.25)


@pytest.mark.parametrize("implementation", BOTH)
def test_a_layout_may_be_made_without_gradients(implementation: str) -> None:
    with torch.inference_mode():
        layout = Layout.packed(PACKS["BAGEL"], DEVICE)
    check(implementation, layout, (2, 1, 16), 0.25)


def test_checkpointing_drops_what_library_attention_keeps() -> None:
    """Recomputed once for all calls of a block, and nothing of attention is kept meanwhile."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 24, 16, generator=draw).to(DEVICE).requires_grad_()
    options = {"attn_mask": None, "is_causal": True, "scale": 0.3}
    ran, flags = [], []

    def block(x: torch.Tensor) -> torch.Tensor:
        ran.append(1)
        flags.append(torch.are_deterministic_algorithms_enabled())
        for _ in range(3):
            x = x + library._Repeatable.apply(x.sin(), x.cos(), x.tanh(), options)
        return x

    def alive() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor and o.shape == x.shape for o in gc.get_objects())

    before = alive()
    out = checkpoint(block, x, use_reentrant=False)
    assert alive() - before == 1  # the output
    (found,) = torch.autograd.grad(out.square().sum(), x)
    assert len(ran) == 2 and not any(flags)
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_library_gradients_have_equal_bits(masked: bool) -> None:
    """The form that runs on GPUs: gradients of SDPA, twice, with torch's settings as they were."""
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 4, 24, 16, generator=draw).to(DEVICE) for _ in range(3)]
    leaves = [leaf.requires_grad_(number != 1) for number, leaf in enumerate(leaves)]
    mask = torch.zeros(24, 24, device=DEVICE).masked_fill_(
        torch.ones(24, 24, device=DEVICE).triu(1).bool(), -9
    )
    options = {"attn_mask": mask if masked else None, "is_causal": not masked, "scale": 0.3}
    wanted = [leaves[0], leaves[2]]
    plain = F.scaled_dot_product_attention(*leaves, **options)
    expected = torch.autograd.grad(plain.square().sum(), wanted)
    out = library._Repeatable.apply(*leaves, options)
    for last in (False, True):  # the second pass makes the graph again
        found = torch.autograd.grad(out.square().sum(), wanted, retain_graph=not last)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("implementation", BOTH)
def test_an_incoming_gradient_may_be_stored_heads_first(implementation: str) -> None:
    layout = Layout.packed([[("full", 20), ("causal", 5), ("noise", 23)]])
    draw = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(48, heads, 16, generator=draw).to(DEVICE).requires_grad_()
        for heads in (4, 2, 2)
    ]
    incoming = torch.randn(4, 48, 16, generator=draw).to(DEVICE).transpose(0, 1)
    out = block_attention(*leaves, layout.to(DEVICE), implementation=implementation)
    first = torch.autograd.grad(out, leaves, incoming.contiguous(), retain_graph=True)
    again = torch.autograd.grad(out, leaves, incoming)
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("implementation", BOTH)
def test_nan_comes_out(implementation: str) -> None:
    layout = Layout.packed([[("causal", 6)]], DEVICE)
    q, k, v = (normal(torch.float32, 6, 1, 16, seed=i) for i in range(3))
    v[3, 0, 2] = float("nan")
    out = block_attention(q, k, v, layout, implementation=implementation)
    assert out[3:, 0, 2].isnan().all()  # whoever sees it; in front 0 * nan may be nan, as in torch
    assert out[:, 0, [0, 1, *range(3, 16)]].isfinite().all()


@pytest.mark.parametrize("implementation", BOTH)
def test_repeated_runs_are_bitwise_equal(implementation: str) -> None:
    pack = [[("causal", 3), ("open", 13), ("causal", 4), ("noise", 13)]]
    first: list[Tensor] = []
    for _ in range(REPEATED):
        leaves = [normal(torch.bfloat16, 33, h, 16, seed=h).requires_grad_() for h in (2, 1, 1)]
        layout = Layout.packed(pack, DEVICE)
        out = block_attention(*leaves, layout, implementation=implementation)
        found = [out, *torch.autograd.grad(out.sum(), leaves)]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


def test_bad_inputs_are_refused() -> None:
    layout = Layout.packed([[("causal", 4)]])
    good, wide = torch.zeros(4, 2, 16), torch.zeros(4, 2, 200)
    refused = [
        (lambda: block_attention(good[:3], good, good, layout), "4 queries"),
        (lambda: block_attention(good, good[:, :, :8], good, layout), "must be"),
        (lambda: block_attention(torch.zeros(4, 3, 16), good, good, layout), "multiple"),
        (lambda: block_attention(good.double(), good, good, layout), "floating-point dtype"),
        (lambda: block_attention(wide, wide, wide, layout, implementation="triton"), "wider"),
        (lambda: Layout.packed([[("text", 4)]]), "choose one of: hidden, pad"),
        (lambda: Layout.packed([[("causal", -1)]]), "negative"),
        (lambda: Layout(layout.sample, layout.block[:2], layout.kind), "one per token"),
        (lambda: layout.with_queries(torch.tensor([2, 1])).tiles(16, 16), "ascend"),
        (lambda: replace(layout, kind=layout.kind + 6).tiles(16, 16), "kind not in 0..5"),
        (lambda: replace(layout, block=layout.block - 2**31).tiles(16, 16), "not between -2"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    shuffled = Layout(layout.sample.new_tensor([1, 0, 1, 0]), layout.block, layout.kind)
    with pytest.raises(ValueError, match="never decrease"):
        block_attention(good, good, good, shuffled)


def test_batches_of_rows_are_samples() -> None:
    kind = torch.tensor([[Kind.PAD, Kind.CAUSAL, Kind.FULL], [Kind.CAUSAL, Kind.FULL, Kind.FULL]])
    batch = Layout.batch(kind)
    packed = Layout.packed([[("pad", 1), ("causal", 1), ("full", 1)], [("causal", 1), ("full", 2)]])
    assert torch.equal(batch.dense(), packed.dense())
    assert batch.to("cpu") is batch


def test_there_are_200_shapes() -> None:
    from tests.kernels.test_losses import shapes_of_losses

    assert shapes_of_losses() + len(CASES) >= 200


@pytest.mark.parametrize("implementation", BOTH)
def test_autocast_casts_mixed_types_as_sdpa_does(implementation: str) -> None:
    """LayerNorm and rotary embeddings leave q and k in fp32 while v is in autocast's dtype (Show-o)."""
    layout = Layout.packed([[("causal", 9)]], DEVICE)
    shapes = {"q": (torch.float32, 4), "k": (torch.float32, 2), "v": (torch.bfloat16, 2)}
    leaves = {
        name: normal(dtype, 9, heads, 16, seed=heads).requires_grad_()
        for name, (dtype, heads) in shapes.items()
    }
    with pytest.raises(ValueError, match="use one floating-point dtype"):
        block_attention(**leaves, layout=layout, implementation=implementation)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = block_attention(**leaves, layout=layout, implementation=implementation)
        batch = {name: leaf.transpose(0, 1)[None] for name, leaf in leaves.items()}
        query, key, value = batch.values()
        plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert out.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain[0].transpose(0, 1), rtol=1e-2, atol=1e-2)
    out.float().square().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves.values()] == [dtype for dtype, _ in shapes.values()]
