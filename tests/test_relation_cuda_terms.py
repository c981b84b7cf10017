"""The CUDA ops of transport, merging, metadata and the terms against the reference, and the whole objective on them.

On a GPU where there is one; everywhere under the emulator, see ``test_relation_cuda.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from test_relation_cuda import (  # noqa: F401
    GPU,
    TOLERANCE,
    Case,
    assert_waits_for_nothing_and_replays,
    emulated,
    generator,
    run,
    wide,
)
from test_relations import batch, small_loss
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from shamisa import ops
from shamisa.reference import relations as reference


def transport_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    u = torch.randn(N, D, generator=g, dtype=torch.float64)
    u[2::3] = u[1::3][: len(u[2::3])]  # rows that tie
    u[::9] = u[:1].clone()
    for scale in (3.0, 0.0) if dtype != torch.float64 and N < 100 else (3.0,):  # 0: all tie, up to rounding in float64
        log_p = (scale * u).log_softmax(1).to(dtype)
        for per_row in (False, True):
            for diagonal in (False, True):
                yield "transport_graph", (log_p, 5, per_row, diagonal)
                weight, index, extreme = reference.transport_graph(log_p, 5, per_row, diagonal)
                grad = torch.randn(len(weight), generator=g, dtype=torch.float64).to(weight.dtype)
                yield "transport_graph_backward", (grad, log_p, weight, index, extreme)
    yield "transport_graph", (log_p, 0, False, True)


def merge_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for M in (0, 1, 3 * N + 1, 40 * N):
        index = torch.randint(N, (2, M), generator=g)  # loops, both directions, many equal
        weight = torch.randn(M, generator=g, dtype=torch.float64).to(dtype)
        for nodes in (N, 50_000):  # keys of 32 and of 64 bits
            yield "merge_edges", (weight, index, nodes)
        position = reference.merge_edges(weight, index, N)[2]
        grad = torch.randn(M, generator=g, dtype=torch.float64).to(wide(dtype))
        yield "merge_edges_backward", (grad, position)


def metadata_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    (B, C, L), views = {2: ((1, 1, 1), 2), 7: ((1, 2, 3), 4), 65: ((2, 4, 5), 6), 130: ((3, 2, 2), 5)}[N]
    severity = (2.5 * torch.randn(B, C, L, generator=generator(N, D))).abs().clamp(max=4).to(dtype)  # ties at 4
    for classes in ("parity", "same_scale", "same_reference"):
        yield "structural_graph", (severity, views, classes)
    yield "ref_ref_graph", (severity, views)
    for decay in ("exponential", "reciprocal"):
        yield "ref_dist_graph", (severity, views, decay)
        for values in (severity, torch.ones_like(severity)):
            for edges in (0, 1, 37, 400, 100_000):
                for per_sample in (False, True):
                    yield "dist_dist_graph", (values, views, edges, per_sample, decay)


def assignment_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for F, K in ((D, 3), (4 * D + 70, 33)):  # pieces of 64 or 128 columns, 32 anchors at a time
        h = torch.randn(N, F, generator=g, dtype=torch.float64).to(dtype)
        if K == 3:
            h[N // 2] = 0  # its gradient is so large that it hides the others
        anchors = torch.randn(K, F, generator=g, dtype=torch.float64).to(dtype)
        yield "transport_logits", (h, anchors)
        logits, norm = reference.transport_logits(h, anchors)
        grad = torch.randn(N, K, generator=g, dtype=torch.float64).to(wide(dtype))
        yield "transport_logits_backward", (grad, h, anchors, logits, norm)
        for rounds in (1, 6):
            yield "transport_codes", (0.2 * logits.to(dtype), 0.05, rounds)


def term_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for E in (D, 70, 2 * N + 3):  # fewer and more than the rows; more than a tile
        x = (3 + torch.randn(E, generator=g).abs() * torch.randn(N, E, generator=g, dtype=torch.float64)).to(dtype)
        grad = torch.tensor(1.5, dtype=wide(dtype))
        yield "variance", (x,)
        yield "variance_backward", (grad, x)
        yield "covariance", (x,)
        yield "covariance_backward", (grad, x, reference.covariance(x)[1])


CASES: dict[str, Callable[[int, int, torch.dtype], Iterator[Case]]] = {
    "assignment": assignment_cases,
    "merge": merge_cases,
    "metadata": metadata_cases,
    "terms": term_cases,
    "transport": transport_cases,
}
# below a warp, around a tile (64), several tiles
SIZES = [(2, 1), (7, 3), (65, 33), (130, 9)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("N, D, dtype", [(*s, t) for s in SIZES for t in DTYPES if s[0] < 100 or t == torch.float32])
@pytest.mark.parametrize("family", CASES)
def test_cuda_equals_reference(run, family, N, D, dtype):  # noqa: F811
    for name, arguments in CASES[family](N, D, dtype):
        before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        actual = run(name, *arguments)
        compare(name, actual, getattr(reference, name)(*arguments))
        if N == 65 and dtype == torch.float32:  # the emulator runs blocks and threads in another order each time
            assert_close(run(name, *arguments), actual, rtol=0, atol=0, msg=lambda m, n=name: f"{n} again: {m}")
        for a, b in zip(arguments, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), f"{name} changes its input"


def compare(name: str, actual, expected) -> None:
    actual, expected = (x if isinstance(x, tuple | list) else (x,) for x in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        if not e.is_floating_point():
            assert_close(a, e, msg=lambda m: f"{name}: {m}")
        else:
            rtol = TOLERANCE[e.dtype]
            # where every score ties, weights are rounding: shares of a range of 1e-6
            atol = rtol * max(e.abs().max().item(), 1e-3) if e.numel() else 0
            assert_close(a, e, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


# ---- what values cannot show -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("N", [30, 100])  # keys kept, and made again
def test_nan_reaches_every_transport_weight(run, N, per_row):  # noqa: F811
    log_p = torch.randn(N, 5, generator=generator(N)).log_softmax(1)
    log_p[17, 2] = torch.nan
    weight, index, extreme = run("transport_graph", log_p, 4, per_row, True)
    assert weight.isnan().all()
    assert ((index >= 0) & (index < N)).all() and extreme.tolist() == [[0, 0], [17, 17]]
    grad = run("transport_graph_backward", torch.ones_like(weight), log_p, weight, index, extreme)
    assert grad[index.flatten()].isnan().all()


def test_nan_reaches_every_code(run):  # noqa: F811
    u = torch.randn(70, 40, generator=generator(70))
    u[17, 2] = torch.nan
    assert run("transport_codes", u, 0.05, 2).isnan().all()


def test_transport_of_infinite_scores(run):  # noqa: F811
    """A row of certain assignments: log p = -inf times p = 0 is NaN, wherever it comes first."""
    log_p = torch.tensor([[0.0, -torch.inf]]).repeat(4, 1)
    weight, index, extreme = run("transport_graph", log_p, 2, False, True)
    assert weight.isnan().all() and extreme.tolist() == [[0, 0], [0, 0]]
    assert ((index >= 0) & (index < 4)).all()


def test_bad_indices_become_nan(run):  # noqa: F811
    """They cannot be reported without waiting for the device, and must not be read."""
    log_p = torch.randn(6, 3, generator=generator(6)).log_softmax(1)
    weight, index, extreme = reference.transport_graph(log_p, 2, False, True)
    for bad in (-1, 6, 1 << 40):
        broken = index.clone()
        broken[1, 3] = bad
        assert run("transport_graph_backward", torch.ones_like(weight), log_p, weight, broken, extreme).isnan().any()
        merged, edges, position = run("merge_edges", weight, broken, 6)
        assert position[3] == -1 and ((edges >= 0) & (edges < 6)).all()


def test_nan_is_kept_by_dist_dist(run):  # noqa: F811
    """Gaps that are NaN stand before all others."""
    severity = torch.rand(2, 2, 3, generator=generator(0))
    severity[1, 0, 2] = torch.nan
    for per_sample in (False, True):
        arguments = (severity, 4, 50, per_sample, "exponential")
        weight, index = run("dist_dist_graph", *arguments)
        assert weight.isnan().any()
        assert_close((weight, index), reference.dist_dist_graph(*arguments), equal_nan=True)


def test_no_anchors_and_no_nodes(run):  # noqa: F811
    h, none = torch.randn(5, 4, generator=generator(5)), torch.empty(0, 4)
    logits, norm = run("transport_logits", h, none)
    dh, dw = run("transport_logits_backward", logits, h, none, logits, norm)
    assert_close((dh, dw), (torch.zeros(5, 4), none))
    one, index = torch.ones(1), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="edges need nodes"):
        run("pair_cost_backward", one[0], none, one, index, one)


def test_too_many_nodes(emulated):  # noqa: F811
    with pytest.raises(RuntimeError, match="1 <= N <= 65536, got N = 65537"):
        emulated("transport_graph")(torch.zeros(65537, 1), 1, False, True)


@pytest.mark.parametrize("name", ["transport_graph_backward", "merge_edges", "covariance_backward", "transport_logits"])
def test_shapes_are_checked(emulated, name):  # noqa: F811
    x, index = torch.zeros(4, 3), torch.zeros(2, 5, dtype=torch.int64)
    arguments = {
        "transport_graph_backward": (torch.zeros(5), x, torch.zeros(4), index, index[:, :2]),
        "merge_edges": (torch.zeros(4), index, 4),
        "covariance_backward": (torch.zeros(()), x, x),
        "transport_logits": (x, torch.zeros(2, 4)),
    }[name]
    with pytest.raises(RuntimeError, match="must be"):
        emulated(name)(*arguments)


# ---- the objective ---------------------------------------------------------------------------------------------------
class Routed(TorchDispatchMode):
    """Inside, every op of the package is run by its table; ops that ran are noted."""

    def __init__(self, table: Callable[[str], Callable]) -> None:
        super().__init__()
        self.table, self.ran = table, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function._schema.name.partition("::")
        if space != "shamisa":
            return function(*args, **(kwargs or {}))
        self.ran.add(name)
        return self.table(name)(*args, **(kwargs or {}))


OBJECTIVES = {
    "published": {},
    "trained": {"aggregation": "trained", "regularizer": "normalized", "halves": "scale"},
    "row": {"transport_select": "row", "transport_diagonal": False, "dist_dist_cap": "sample", "decay": "reciprocal"},
    "same_scale": {"structural": "same_scale", "aggregation": "equal", "transport_diagonal": False},
    "binary": {"binary": True, "alignment": False},
    "two_graphs": {"graphs": ("knn", "transport"), "regularizer": "off"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_equals_reference(emulated, name):  # noqa: F811
    """Value and gradients of RelationLoss with every relation op on the CUDA kernels, under the emulator."""
    leaves, plan = batch(2, V=4, C=2, L=3, F=24, E=20, dtype=torch.float32)
    loss = small_loss(24, dtype=torch.float32, dist_dist_edges=100, **OBJECTIVES[name])
    inputs = [*leaves, *loss.parameters()]
    results, ran = [], []
    for table in (emulated, ops.TABLE.get):
        with Routed(table) as mode:
            out = loss(*leaves, plan)
            gradients = torch.autograd.grad(out.total, inputs, allow_unused=True)
        results.append((out, gradients))
        ran.append(mode.ran)
    assert ran[0] == ran[1] and {"knn_graph", "merge_edges", "pair_cost_backward", "covariance_backward"} <= ran[0]
    (out, gradients), (expected, expected_gradients) = results
    assert_close(out.graph.index, expected.graph.index)
    for term in ("total", "pair", "transport", "regularizer", "variance", "covariance"):
        a, b = getattr(out, term), getattr(expected, term)
        assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, t=term: f"{t}: {m}")
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


# ---- what only a GPU shows -------------------------------------------------------------------------------------------
@GPU
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("N", [2016, 4999])  # scores kept, and made again by every pass
def test_many_nodes(N, per_row):
    log_p = (3 * torch.randn(N, 32, generator=generator(N))).log_softmax(1)
    log_p[1::5] = log_p[::5][: len(log_p[1::5])]
    expected = torch.ops.shamisa.transport_graph(log_p, 8, per_row, True)
    actual = torch.ops.shamisa.transport_graph(log_p.cuda(), 8, per_row, True)
    compare("transport_graph", [x.cpu() for x in actual], expected)
    arguments = (torch.randn(len(expected[0]), generator=generator(N)), log_p, *expected)
    gradient = torch.ops.shamisa.transport_graph_backward(*(a.cuda() for a in arguments)).cpu()
    compare("transport_graph_backward", gradient, torch.ops.shamisa.transport_graph_backward(*arguments))


@GPU
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_waits_for_nothing_and_replays(name):
    """Forward and backward without synchronisation; a CUDA graph of both gives the same on new contents."""
    leaves, plan = batch(2, F=64, E=40, dtype=torch.float32)
    loss = small_loss(64, dtype=torch.float32, **OBJECTIVES[name]).cuda()
    leaves = [x.detach().cuda().requires_grad_() for x in leaves]
    plan = SimpleNamespace(severity=plan.severity.cuda(), varying=plan.varying.cuda())

    def step():
        total = loss(*leaves, plan).total
        return total.detach(), *torch.autograd.grad(total, leaves, allow_unused=True)

    def change():
        with torch.no_grad():
            for x in leaves:
                x.copy_(x.flip(0))

    assert_waits_for_nothing_and_replays(step, change)
