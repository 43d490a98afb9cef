"""The operators in traced graphs: one graph with torch.compile, shapes without values, no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from reca_kernels import (
    Layout,
    block_attention,
    flow_matching_loss,
    linear_cross_entropy,
    traced,
)
from reca_kernels.operators import attention, cross_entropy, flow, operation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.kernels.cases import DEVICE, normal

BOTH = ("torch", "triton")
LAYOUT = Layout.packed([[("causal", 9), ("full", 12)], [("open", 5), ("noise", 14)]], DEVICE)
TARGETS = torch.arange(40, device=DEVICE) % 30
TARGETS_SOME = torch.where(TARGETS % 3 == 0, -100, TARGETS)
DATA = normal(torch.float32, 2, 40, 30, seed=5).unbind(0)
MASK = TARGETS % 2 == 0

# a block as a model has it: what surrounds the operator is traced with it
CALLS: dict[str, Callable[..., Tensor]] = {
    "cross-entropy": lambda x, w, how: linear_cross_entropy(
        x.tanh(), w, TARGETS_SOME, reduction="sum", implementation=how
    ),
    "cross-entropy by row": lambda x, w, how: linear_cross_entropy(
        x.tanh(), w, TARGETS_SOME, reduction="none", implementation=how
    ).square().sum(),
    "flow": lambda x, w, how: flow_matching_loss(x.tanh(), w, None, *DATA, implementation=how),
    "flow by row": lambda x, w, how: flow_matching_loss(
        x.tanh(), w, None, *DATA, MASK, reduction="none", implementation=how
    ).square().sum(),
    "attention": lambda x, w, how: block_attention(
        *((x @ w[:24]).tanh().view(40, 3, 8).split([1, 1, 1], 1)), LAYOUT, implementation=how
    ).square().sum(),
}  # fmt: skip


def leaves() -> list[Tensor]:
    shapes = ((40, 24), (30, 24))
    return [normal(torch.float32, *s, seed=i).requires_grad_() for i, s in enumerate(shapes)]


def results(call: Callable[..., Tensor]) -> list[Tensor]:
    given = leaves()
    out = call(*given)
    out.backward()
    return [out.detach(), *(leaf.grad for leaf in given if leaf.grad is not None)]


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", CALLS)
def test_torch_compile_makes_one_graph(name: str, how: str) -> None:
    call = partial(CALLS[name], how=how)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    # eager attention in torch is SDPA, whose kernels on a GPU sum in another order than what a graph has
    apart = 10 if (name, how, DEVICE) == ("attention", "torch", "cuda") else 1
    for one, other in zip(results(compiled), results(call), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 * apart, atol=1e-6 * apart)


def test_auto_is_decided_while_the_graph_is_made() -> None:
    call = partial(CALLS["cross-entropy"], how="auto")
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(results(compiled), results(call), strict=True):
        assert torch.equal(one, other)


def test_one_graph_serves_every_layout() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def block(x: Tensor, layout: Layout) -> Tensor:
        q = x.view(-1, 2, 12)
        return block_attention(q, q, q, layout, implementation="torch")

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for split in (9, 17, 30, 33):
        layout = Layout.packed([[("causal", split), ("full", 40 - split)]], DEVICE)
        x = normal(torch.float32, 40, 24)
        torch.testing.assert_close(compiled(x, layout), block(x, layout))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["cross-entropy", "attention"])
def test_only_plain_values_become_constants_of_a_graph(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 refuses frozen dataclasses there ("can't reconstruct arbitrary frozen dataclass instances")."""
    given: list[object] = []

    @torch.compiler.assume_constant_result
    def note(function: Callable[..., object], *arguments: object) -> object:
        given.extend(arguments)
        return function(*arguments)

    monkeypatch.setattr(traced, "constant", note)
    torch.compile(partial(CALLS[name], how="auto"), fullgraph=True, backend="eager")(*leaves())
    assert given and all(
        isinstance(one, str | torch.device | torch.dtype | None) for one in given
    ), given


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", CALLS)
def test_checkpointing_changes_no_bit(name: str, how: str, reentrant: bool) -> None:
    call = partial(CALLS[name], how=how)
    again = partial(checkpoint, call, use_reentrant=reentrant)
    for one, other in zip(results(again), results(call), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", BOTH)
def test_what_torch_asks_of_an_operator(how: str) -> None:
    """Schema, shapes and strides without values, registered gradients, graphs of forward and backward."""
    x, w = leaves()
    needs = [True, True, False]
    calls = {
        cross_entropy.linear_cross_entropy: [
            (x, w, None, TARGETS_SOME, -100, 0, 30, 0.0, "sum", how, needs),
            (x, w, None, TARGETS, None, 0, 30, 0.1, "none", how, needs),
        ],
        flow.flow_matching_loss: [
            (x, w, None, *DATA, MASK, "mean", how, needs),
            (x, w, None, *DATA, None, "none", how, needs),
        ],
    }
    q = normal(torch.float32, 40, 2, 8).requires_grad_()
    tokens = (LAYOUT.sample, LAYOUT.tag, LAYOUT.query_positions)
    calls[attention.block_attention] = [(q, q[:, :1], q[:, 1:], *tokens, 0.3, how)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for one, given in calls.items():
        operator = getattr(torch.ops.reca_kernels, traced.registered(one)).default
        for arguments in given:
            torch.library.opcheck(operator, arguments, test_utils=tests)


# ---- waits for the device ------------------------------------------------------------------------
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::masked_select",
         "aten::equal", "aten::is_nonzero", "aten::unique_consecutive", "aten::index.Tensor_bool")  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts operations whose result the host needs."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func._schema.name in WAITS and not known(args[0])
        return func(*args, **(kwargs or {}))


def known(tensor: Tensor) -> bool:
    """Whether it is the number of rows, which the operators keep in main memory."""
    return tensor.dim() == 0 and tensor.dtype == torch.int64


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are found as on a GPU, where finding them by `nonzero` would be a wait."""
    monkeypatch.setattr(operation, "on_gpu", lambda tensor: True)


@pytest.mark.parametrize(
    ("name", "allowed"), {"cross-entropy": 2, "cross-entropy by row": 2, "flow by row": 1}.items()
)
@pytest.mark.parametrize("how", BOTH)
def test_a_call_waits_once(
    name: str, allowed: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers that come in one copy count twice here; the backward pass does not wait at all."""
    on_a_gpu(monkeypatch)
    given = leaves()
    with Waits() as forward:
        out = CALLS[name](*given, how)
    assert forward.count <= allowed
    with Waits() as backward:
        out.backward()
    assert backward.count == 0


@pytest.mark.parametrize("how", BOTH)
def test_nothing_waits_where_no_count_depends_on_data(how: str) -> None:
    """What a CUDA graph can capture: losses of all rows, and attention with the lists of its layout."""
    given = leaves()
    tokens = (LAYOUT.sample, LAYOUT.tag, LAYOUT.query_positions)
    q = given[0].view(40, 3, 8)
    with Waits() as seen:
        linear_cross_entropy(*given, TARGETS, all_valid=True, implementation=how).backward()
        flow_matching_loss(*given, None, *DATA, implementation=how).backward()
        if how == "triton":
            attention.block_attention(q, q, q, *tokens, 0.3, how)[0].sum().backward()
    assert seen.count == 0


def test_the_tiles_of_a_layout_are_listed_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without values there is nothing to wait for: only shapes reach the lists."""
    monkeypatch.setattr(Layout, "check", lambda self: None)  # an assertion of the device's own
    monkeypatch.setattr(Layout, "known_on_host", False)  # as on a GPU
    with FakeTensorMode():
        tokens = torch.zeros(300, dtype=torch.int32, device="cpu")
        layout = Layout(tokens, tokens.clone(), tokens.clone())
        for by_key in (False, True):
            tiles = layout.tiles(64, 32, by_key)
            assert tiles.columns.shape == (50,) and len(tiles.stops) == (10 if by_key else 5)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA: captures a graph")
def test_a_cuda_graph_captures_losses_and_attention() -> None:
    x, w = leaves()
    q = x.detach().view(40, 3, 8)
    options = {"implementation": "triton"}

    def step() -> list[Tensor]:
        losses = [
            linear_cross_entropy(x, w, TARGETS, all_valid=True, **options),
            flow_matching_loss(x, w, None, *DATA, **options),
        ]
        gradients = torch.autograd.grad(sum(losses), (x, w))
        # without its history, whose nodes stay on the stream where it was made: a capture may not wait for that one
        detached = [loss.detach() for loss in losses]
        return [*detached, *gradients, block_attention(q, q, q, LAYOUT, **options)]

    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


# ---- gradients that nobody asks for ---------------------------------------------------------------
@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", ["cross-entropy", "flow"])
def test_no_gradient_is_made_under_no_grad(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for module, operator in (
        (cross_entropy, "linear_cross_entropy"), (flow, "flow_matching_loss"),
    ):  # fmt: skip
        function = getattr(module, operator)

        def note(*arguments: object, function: Callable[..., object] = function) -> object:
            asked.append((arguments[-1], [len(t) for t in function(*arguments)[3:]]))
            return function(*arguments)

        monkeypatch.setattr(module, operator, note)
    with torch.no_grad():
        CALLS[name](*leaves(), how)
    frozen = [t.detach() for t in leaves()]
    CALLS[name](*frozen, how)
    assert asked == [([False] * 3, [0, 0, 0])] * 2
