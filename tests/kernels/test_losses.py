"""Linear cross-entropy and the flow-matching loss: errors, edges, equal bits, no logits in memory."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from reca_kernels import flow_matching_loss, linear_cross_entropy
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.cases import (
    DEVICE,
    REPEATED,
    TYPES,
    assert_no_worse,
    normal,
    plain_cross_entropy,
    plain_flow,
    seed_of,
)

BOTH = ("torch", "triton")
# one row, primes around a tile of 32, more than two tiles; widths below and above a tile's depth
WIDE = list(product((1, 2, 31, 97), (1, 19, 67, 128), (1, 2, 37, 211)))
INTERPRETED = [(1, 16, 1), (3, 1, 5), (31, 33, 67), (33, 31, 32), (32, 32, 64), (7, 67, 101),
               (40, 48, 90), (97, 5, 33), (2, 130, 3), (65, 64, 31), (5, 37, 257), (1, 1, 1)]  # fmt: skip
FLOW = list(product((1, 13, 37, 97), (1, 19, 67, 128), (1, 4, 17, 64)))
FLOW_INTERPRETED = [(1, 16, 16), (17, 33, 4), (33, 31, 17), (5, 70, 64), (40, 1, 1), (16, 32, 128)]


def shapes_of_losses() -> int:
    return len(WIDE) + len(INTERPRETED) + len(FLOW) + len(FLOW_INTERPRETED)


def drawn_targets(rows: int, start: int, stop: int, seed: int, ignored: float = 0.3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(start, stop, (rows,), generator=draw)
    targets[torch.rand(rows, generator=draw) < ignored] = -100
    if rows > 1:
        targets[0], targets[-1] = start, stop - 1  # the ends of the slice
    return targets.to(DEVICE)


# ---- linear cross-entropy ------------------------------------------------------------------------
def test_targets_that_are_known_to_be_valid_are_not_looked_at() -> None:
    """The same loss; and on the meta device, where no value can be read, a shape."""
    hidden, weight = normal(torch.float32, 7, 5, seed=1), normal(torch.float32, 9, 5, seed=2)
    targets = drawn_targets(7, 2, 8, 3, ignored=0.0)
    options = {"vocab": (2, 8), "reduction": "sum", "implementation": "torch"}
    expected = linear_cross_entropy(hidden, weight, targets, **options)
    assert torch.equal(
        linear_cross_entropy(hidden, weight, targets, all_valid=True, **options), expected
    )


def check_cross_entropy(shape: tuple[int, int, int], implementation: str) -> None:
    """The type, the slice, the bias, smoothing and reduction vary with the shape."""
    rows, width, vocabulary = shape
    seed = seed_of(shape)
    dtype = TYPES[seed % 3]
    start = seed % 5 if vocabulary > 8 else 0
    options = {
        "vocab": (start, vocabulary - start // 2) if start else None,
        "label_smoothing": 0.1 * (seed % 2),
        "reduction": ("none", "mean", "sum")[seed // 3 % 3] if rows < 32 else "none",
    }
    targets = drawn_targets(rows, *(options["vocab"] or (0, vocabulary)), seed)
    inputs = {
        "hidden": normal(dtype, rows, width, seed=seed),
        "weight": normal(dtype, vocabulary, width, seed=seed + 1) / width**0.5,
    }
    if seed % 7 > 2:
        inputs["bias"] = normal(dtype, vocabulary, seed=seed + 2)
    ours = partial(linear_cross_entropy, implementation=implementation, **options)
    plain = partial(plain_cross_entropy, **options)
    assert_no_worse(
        lambda hidden, weight, bias=None: ours(hidden, weight, targets, bias),
        lambda hidden, weight, bias=None: plain(hidden, weight, targets, bias),
        **inputs,
    )


@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_cross_entropy_in_torch(shape: tuple[int, int, int]) -> None:
    check_cross_entropy(shape, "torch")


@pytest.mark.parametrize("shape", INTERPRETED, ids=str)
def test_cross_entropy_in_triton(shape: tuple[int, int, int]) -> None:
    check_cross_entropy(shape, "triton")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [58498, 151936])  # Show-o's and Qwen's
def test_large_vocabularies(vocabulary: int, dtype: torch.dtype) -> None:
    hidden, weight = normal(dtype, 5, 8), normal(dtype, vocabulary, 8, seed=1)
    targets = drawn_targets(5, vocabulary - 9000, vocabulary, 3)
    options = {"vocab": (vocabulary - 8999, vocabulary)} if vocabulary == 58498 else {}
    targets[targets == vocabulary - 9000] += 1
    assert_no_worse(
        lambda hidden, weight: linear_cross_entropy(
            hidden, weight, targets, implementation="torch", reduction="none", **options
        ),
        lambda hidden, weight: plain_cross_entropy(
            hidden, weight, targets, reduction="none", **options
        ),
        hidden=hidden,
        weight=weight,
    )


def test_slabs_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from reca_kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "_SLAB_BYTES", 1)  # slabs of 128 columns, the least
    for name in ("_CHUNK_BYTES", "_CHUNK_BYTES_GPU"):
        monkeypatch.setattr(cross_entropy, name, 1)  # chunks of 16 rows, the least
    for implementation in BOTH:
        check_cross_entropy((37, 20, 400), implementation)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("vocab", "smoothing"), [(None, 0.1), ((3, 140), 0.0), ((0, 128), 0.0)])
def test_a_scalar_loss_with_its_gradients_by_chunks(
    vocab: tuple[int, int] | None,
    smoothing: float,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two chunks of 128 rows, the least: their sum is kept in fp32, in a slab that is padded where it is odd."""
    from reca_kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "_FUSED_BYTES", (1, 1))
    targets = drawn_targets(190, *(vocab or (0, 150)), 1)
    options = {"vocab": vocab, "label_smoothing": smoothing, "reduction": "sum"}
    assert_no_worse(
        lambda hidden, weight, bias: linear_cross_entropy(
            hidden, weight, targets, bias, implementation="triton", **options
        ) / 32,
        lambda hidden, weight, bias: plain_cross_entropy(hidden, weight, targets, bias, **options) / 32,
        hidden=normal(dtype, 190, 24),
        weight=normal(dtype, 150, 24, seed=1) / 5,
        bias=normal(dtype, 150, seed=2),
    )  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize(("first", "last"), [(0, 64), (32, 96), (0, 140), (100, 151)])
def test_banned_columns(first: int, last: int, implementation: str, smoothing: float) -> None:
    """A bias of -inf bans columns: whole tiles of 32, the first ones, all that a split of them holds."""
    hidden, weight = normal(torch.float32, 9, 16), normal(torch.float32, 160, 16, seed=1)
    bias = normal(torch.float32, 160, seed=2)
    bias[first:last] = float("-inf")
    allowed = [id for id in range(160) if not first <= id < last]
    targets = torch.tensor(allowed, device=DEVICE)[torch.arange(9, device=DEVICE) * 2]
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    h, w, b = leaves
    options = {"label_smoothing": smoothing, "implementation": implementation}
    loss = linear_cross_entropy(h, w, targets, b, **options)
    wanted = F.cross_entropy(F.linear(hidden, weight, bias), targets, label_smoothing=smoothing)
    assert torch.isinf(wanted) == (smoothing > 0)
    torch.testing.assert_close(loss, wanted)
    if not smoothing:
        loss.backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)
        assert not w.grad[first:last].any() and not b.grad[first:last].any()


@pytest.mark.parametrize("implementation", BOTH)
def test_a_banned_target_costs_infinity(implementation: str) -> None:
    hidden, weight = normal(torch.float32, 9, 16), normal(torch.float32, 160, 16, seed=1)
    bias = normal(torch.float32, 160, seed=2)
    bias[40:80] = float("-inf")
    targets = torch.arange(36, 45, device=DEVICE)
    loss = linear_cross_entropy(
        hidden, weight, targets, bias, reduction="none", implementation=implementation
    )
    wanted = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    torch.testing.assert_close(loss, wanted)
    assert loss.isinf().tolist() == [at >= 4 for at in range(9)]


@pytest.mark.parametrize("implementation", BOTH)
def test_the_default_type_changes_nothing(implementation: str) -> None:
    """Sums stay fp32 where a caller has made bf16 the default, as loaders of checkpoints do."""
    x, w = normal(torch.float32, 40, 16), normal(torch.float32, 20, 16, seed=1)
    targets, data = torch.arange(40, device=DEVICE) % 20, normal(torch.float32, 40, 20, seed=2)
    found = []
    for default in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            leaves = [t.clone().requires_grad_() for t in (x, w)]
            losses = [
                linear_cross_entropy(*leaves, targets, implementation=implementation),
                flow_matching_loss(*leaves, None, data, -data, implementation=implementation),
            ]
            sum(losses).backward()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([*losses, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("implementation", BOTH)
def test_layouts_in_memory(implementation: str) -> None:
    """Transposed, strided, expanded and misaligned views give what their copies give."""
    targets = drawn_targets(12, 0, 33, 0)
    views = {
        "hidden": [
            normal(torch.float32, 20, 12).T,
            normal(torch.float32, 12, 60)[:, ::3],
            normal(torch.float32, 1, 20).expand(12, 20),
            normal(torch.float32, 12 * 20 + 1)[1:].view(12, 20),
        ],
        "weight": [normal(torch.float32, 20, 33).T, normal(torch.float32, 66, 20)[::2]],
        "bias": [normal(torch.float32, 1).expand(33), normal(torch.float32, 66)[::2]],
    }
    usual = {
        "hidden": normal(torch.float32, 12, 20),
        "weight": normal(torch.float32, 33, 20, seed=1),
        "bias": normal(torch.float32, 33, seed=2),
    }
    for name, given in views.items():
        for view in given:
            inputs = usual | {name: view}
            assert_no_worse(
                lambda hidden, weight, bias: linear_cross_entropy(
                    hidden, weight, targets, bias, implementation=implementation
                ),
                lambda hidden, weight, bias: plain_cross_entropy(hidden, weight, targets, bias),
                **inputs,
            )


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_learn_costs_exactly_nothing(implementation: str, reduction: str) -> None:
    for rows in (0, 3):
        leaves = [normal(torch.float32, *s).requires_grad_() for s in ((rows, 8), (9, 8), (9,))]
        ignored = torch.full((rows,), -100, device=DEVICE)
        hidden, weight, bias = leaves
        loss = linear_cross_entropy(
            hidden, weight, ignored, bias, reduction=reduction, implementation=implementation
        )
        data = torch.zeros(rows, 9, device=DEVICE)
        flow = flow_matching_loss(
            hidden, weight, bias, data, data, torch.zeros(rows, device=DEVICE).bool(),
            reduction=reduction, implementation=implementation,
        )  # fmt: skip
        for one in (loss, flow):
            assert one.shape == ((rows,) if reduction == "none" else ())
            assert (one == 0).all()
            for gradient in torch.autograd.grad(one.sum(), leaves):
                assert (gradient == 0).all()


@pytest.mark.parametrize("implementation", BOTH)
def test_nan_and_infinity_come_out(implementation: str) -> None:
    weight, targets = normal(torch.float32, 9, 8), torch.tensor([1, 2], device=DEVICE)
    for bad in (float("nan"), float("inf")):
        hidden = normal(torch.float32, 2, 8)
        hidden[1, 3] = bad
        losses = linear_cross_entropy(
            hidden, weight, targets, reduction="none", implementation=implementation
        )
        assert losses[0].isfinite() and not losses[1].isfinite()
        flow = flow_matching_loss(
            hidden, weight, None, torch.zeros(2, 9, device=DEVICE), torch.zeros(2, 9, device=DEVICE),
            reduction="none", implementation=implementation,
        )  # fmt: skip
        assert flow[0].isfinite() and not flow[1].isfinite()


@pytest.mark.parametrize("implementation", BOTH)
def test_columns_outside_the_slice_get_no_gradient(implementation: str) -> None:
    hidden, weight = normal(torch.float32, 6, 8), normal(torch.float32, 50, 8).requires_grad_()
    targets = drawn_targets(6, 10, 20, 0)
    linear_cross_entropy(
        hidden, weight, targets, vocab=(10, 20), implementation=implementation
    ).backward()
    assert (weight.grad[:10] == 0).all() and (weight.grad[20:] == 0).all()
    assert (weight.grad[10:20] != 0).any()


@pytest.mark.parametrize("implementation", BOTH)
def test_the_scale_of_the_incoming_gradient_and_a_second_pass(implementation: str) -> None:
    hidden = normal(torch.float32, 5, 8).requires_grad_()
    weight, targets = normal(torch.float32, 9, 8), drawn_targets(5, 0, 9, 0)
    loss = linear_cross_entropy(hidden, weight, targets, implementation=implementation)
    (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    kept = once.clone()
    (thrice,) = torch.autograd.grad(loss * 3, hidden)
    torch.testing.assert_close(thrice, 3 * kept)
    assert torch.equal(once, kept), "the second pass changed what the first gave"


def test_frozen_inputs_get_no_gradient() -> None:
    weight, targets = normal(torch.float32, 9, 8).requires_grad_(), drawn_targets(5, 0, 9, 0)
    for implementation in BOTH:
        hidden = normal(torch.float32, 5, 8)
        linear_cross_entropy(hidden, weight, targets, implementation=implementation).backward()
        assert hidden.grad is None and weight.grad is not None
        weight.grad = None


def test_autocast_is_that_of_linear() -> None:
    hidden, weight = normal(torch.float32, 4, 16), normal(torch.float32, 9, 16)
    targets = drawn_targets(4, 0, 9, 0)
    low = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(linear_cross_entropy(hidden, weight, targets), low)


def test_double_precision_is_kept() -> None:
    hidden = normal(torch.float64, 3, 4).requires_grad_()
    weight = normal(torch.float64, 7, 4).requires_grad_()
    targets = torch.tensor([0, 6, -100], device=DEVICE)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, label_smoothing=0.1), (hidden, weight)
    )
    clean, noise = normal(torch.float64, 2, 3, 7).unbind(0)
    assert torch.autograd.gradcheck(
        lambda h, w: flow_matching_loss(h, w, None, clean, noise, reduction="none"),
        (hidden, weight),
    )


# ---- flow matching -------------------------------------------------------------------------------
def check_flow(shape: tuple[int, int, int], implementation: str) -> None:
    rows, width, channels = shape
    seed = seed_of(shape)
    dtype = TYPES[seed % 3]
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, generator=draw) < 0.6).to(DEVICE) if seed % 4 else None
    # squares of order one or less, as a flow's are: the tolerance is absolute
    clean = normal(torch.float32, rows, channels, seed=seed + 4) / 4
    noise = normal(torch.float32, 1, channels, seed=seed + 5).expand(rows, channels) / 4
    options = {"reduction": ("none", "mean", "sum")[seed // 3 % 3] if rows < 16 else "none"}
    inputs = {
        "hidden": normal(dtype, rows, width, seed=seed),
        "weight": normal(dtype, channels, width, seed=seed + 1) / width**0.5 / 4,
    }
    if seed % 7 > 2:
        inputs["bias"] = normal(dtype, channels, seed=seed + 2) / 4
    assert_no_worse(
        lambda hidden, weight, bias=None: flow_matching_loss(
            hidden, weight, bias, clean, noise, mask, implementation=implementation, **options
        ),
        lambda hidden, weight, bias=None: plain_flow(
            hidden, weight, bias, clean, noise, mask, **options
        ),
        **inputs,
    )


@pytest.mark.parametrize("shape", FLOW, ids=str)
def test_flow_in_torch(shape: tuple[int, int, int]) -> None:
    check_flow(shape, "torch")


@pytest.mark.parametrize("shape", FLOW_INTERPRETED, ids=str)
def test_flow_in_triton(shape: tuple[int, int, int]) -> None:
    check_flow(shape, "triton")


def test_the_chunks_of_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    from reca_kernels import flow

    for name in ("_CHUNK_ROWS", "_CHUNK_ROWS_GPU"):
        monkeypatch.setattr(flow, name, 7)
    check_flow((41, 20, 5), "torch")


# ---- equal bits, memory, learning ----------------------------------------------------------------
@pytest.mark.parametrize("implementation", BOTH)
def test_repeated_runs_are_bitwise_equal(implementation: str) -> None:
    hidden, weight = normal(torch.bfloat16, 35, 40), normal(torch.bfloat16, 70, 40, seed=1)
    targets = drawn_targets(35, 0, 70, 0)
    data = normal(torch.float32, 2, 35, 70).unbind(0)
    first: list[Tensor] = []
    for _ in range(REPEATED):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        losses = [
            linear_cross_entropy(*leaves, targets, implementation=implementation),
            flow_matching_loss(*leaves, None, *data, implementation=implementation),
        ]
        found = [*losses, *torch.autograd.grad(sum(losses), leaves)]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


class Made(TorchDispatchMode):
    """The shapes of all tensors that operations allocate (views of their inputs not counted)."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in known:
                self.shapes.add(tuple(one.shape))
        return out


@pytest.mark.parametrize("implementation", BOTH)
def test_no_logits_and_no_velocities_in_memory(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reca_kernels import cross_entropy, flow

    for module, name, value in (
        (cross_entropy, "_CHUNK_BYTES", 16 * 200 * 4),
        (cross_entropy, "_CHUNK_BYTES_GPU", 16 * 200 * 4),
        (cross_entropy, "_SLAB_BYTES", 1),
        (cross_entropy, "_FUSED_BYTES", (1, 1)),
        (flow, "_CHUNK_ROWS", 16),
        (flow, "_CHUNK_ROWS_GPU", 16),
    ):
        monkeypatch.setattr(module, name, value)
    rows, width, vocabulary, channels = 480, 8, 200, 24
    leaves = [
        normal(torch.float32, *s).requires_grad_() for s in ((rows, width), (vocabulary, width))
    ]
    head = normal(torch.float32, channels, width).requires_grad_()
    data = normal(torch.float32, 2, rows, channels).unbind(0)
    targets = drawn_targets(rows, 0, vocabulary, 0, ignored=0)
    with Made() as seen:
        linear_cross_entropy(*leaves, targets, implementation=implementation).backward()
    assert (rows, vocabulary) not in seen.shapes and (vocabulary, rows) not in seen.shapes
    largest = max(torch.Size(shape).numel() for shape in seen.shapes)
    assert largest <= max(vocabulary * width, 128 * rows, 128 * 256)
    with Made() as seen:
        flow_matching_loss(leaves[0], head, None, *data, implementation=implementation).backward()
    made = [shape for shape in seen.shapes if shape == (rows, channels)]
    # Triton keeps one row of derivatives per row, and scales it
    assert len(made) <= (implementation == "triton"), "velocities or targets stood in memory"


def test_logits_smaller_than_the_sum_of_chunks_are_one_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two chunks would need half of the logits, and the gradient of the weights in fp32."""
    from reca_kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "_FUSED_BYTES", (1, 1))
    weight = normal(torch.bfloat16, 128, 256).requires_grad_()
    for rows, one_chunk in (
        (500, True),
        (1500, False),
    ):  # 128 and 384 kB of logits; the sum has 128 kB
        hidden = normal(torch.bfloat16, rows, 256)
        with Made() as seen:
            targets = torch.arange(rows, device=DEVICE) % 128
            linear_cross_entropy(hidden, weight, targets, implementation="triton").backward()
        assert ((rows, 128) in seen.shapes) == one_chunk
        assert ((128, 128) in seen.shapes) != one_chunk


def test_a_small_model_learns_the_same() -> None:
    """100 steps of a classifier: with the kernel, with its torch twin and with plain torch."""
    final = {}
    for name in ("plain", *BOTH):
        torch.manual_seed(0)
        embed, head = torch.nn.Embedding(12, 16), torch.nn.Linear(16, 12)
        optimizer = torch.optim.SGD([*embed.parameters(), *head.parameters()], lr=1.0)
        embed, head = embed.to(DEVICE), head.to(DEVICE)
        ids = torch.arange(12, device=DEVICE)
        for _ in range(100):
            hidden, targets = embed(ids).tanh(), (ids * 5 + 1) % 12
            if name == "plain":
                loss = F.cross_entropy(head(hidden), targets)
            else:
                loss = linear_cross_entropy(
                    hidden, head.weight, targets, head.bias, implementation=name
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        final[name] = loss.item()
    assert final["plain"] < 0.3  # it learned (chance is 2.5)
    for name in BOTH:
        assert abs(final[name] - final["plain"]) <= 1e-5 * final["plain"]
