"""The compiled relation kernels against the reference: the same edges, values and gradients, whatever the threads."""

from __future__ import annotations

import pytest
import torch
from test_relations import batch, small_loss
from torch.testing import assert_close

from shamisa import ops
from shamisa.reference import relations as reference

OPS = torch.ops.shamisa
pytestmark = pytest.mark.skipif(not ops.has_kernel("knn_graph", "cpu"), reason="no compiled CPU kernels")


def rows(N, F, dtype, kind):
    """Normalised rows around a common direction.

    duplicates: every third row repeats the one before, every ninth the first. near: rows come in groups of four that
    lie so nearly equally far from any other row that sums in float32 cannot tell which is nearest. collapsed: what the
    rows have in common is a thousand times what tells them apart. clusters: the same within each of three far groups.
    (In float64 twenty times: the reference itself rounds there.)
    """
    g = torch.Generator().manual_seed(N + F)
    x = 1 + torch.randn(N, F, generator=g, dtype=torch.float64)
    if kind == "near":
        corner = torch.eye(4, dtype=torch.float64)[torch.arange(N) % 4]
        corner = corner * (1 + 3e-7 * torch.randn(N, 4, generator=g, dtype=torch.float64))
        x = torch.cat([x[torch.arange(N) // 4 * 4], corner * F**0.5], 1)
    spread = 5e-2 if dtype == torch.float64 else 1e-3
    if kind == "collapsed":
        x = 1 + spread * (x - 1)
    if kind == "clusters":
        x = x[torch.arange(N) % 3] + spread * x
    if kind == "duplicates":
        x[2::3] = x[1::3][: len(x[2::3])]
        x[::9] = x[:1].clone()
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


def native_cases(N, F, dtype, kind):
    """op -> arguments, at a size of its own; what the reference makes feeds the backwards."""
    g = torch.Generator().manual_seed(5)
    h = rows(N, F, dtype, kind)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    k = min(31, N - 1)
    distance, neighbor, _ = reference.knn_graph(h, k)
    log_p = (4 * rows(N, 7, wide, kind)).log_softmax(1)
    z = torch.randn(N, F, generator=g).to(dtype)
    index = torch.randint(N, (2, 5 * N), generator=g)
    weight = torch.rand(5 * N, generator=g).to(wide)
    grads = [torch.randn(n, generator=g).to(wide) for n in (N * k, 8 * N)]
    yield "knn_graph", (h, k)
    yield "knn_graph_backward", (grads[0].view(N, k), h, distance, neighbor)
    for per_row in (False, True):
        for diagonal in (False, True):
            yield "transport_graph", (log_p, 8, per_row, diagonal)
            scores, edges, extreme = reference.transport_graph(log_p, 8, per_row, diagonal)
            grad = grads[1][: len(scores)]
            yield "transport_graph_backward", (grad, log_p, scores, edges, extreme)
    yield "pair_cost", (z, weight, index)
    squared = reference.pair_cost(z, weight, index)[1]
    yield "pair_cost_backward", (torch.tensor(1.5, dtype=wide), z, weight, index, squared)


# Around the sizes of tiles (6), panels (8, 16), blocks (96), chunks of columns (64, 256); one round and many.
SIZES = [(2, 1), (7, 3), (31, 70), (97, 64), (96, 33), (192, 300), (290, 17), (505, 130)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["distinct", "duplicates", "near", "collapsed", "clusters"])
@pytest.mark.parametrize("N, F", SIZES)
def test_native_equals_reference(N, F, kind, dtype):
    threads = torch.get_num_threads()
    for name, arguments in native_cases(N, F, dtype, kind):
        expected = getattr(reference, name)(*arguments)
        actual = getattr(OPS, name)(*arguments)
        torch.set_num_threads(threads + 2)
        again = getattr(OPS, name)(*arguments)
        torch.set_num_threads(threads)
        tuples = [x if isinstance(x, tuple | list) else (x,) for x in (actual, again, expected)]
        for a, b, e in zip(*tuples, strict=True):
            assert_close(a, b, rtol=0, atol=0, msg=lambda m, n=name: f"{n} depends on threads: {m}")
            if not e.is_floating_point():
                assert_close(a, e, msg=lambda m, n=name: f"{n}: {m}")
            elif e.numel():
                rtol = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 1e-2}[e.dtype]
                atol = rtol * e.abs().max().item()
                assert_close(a, e, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def alike(leaves):
    """Rows of h that repeat others, in all samples, and a whole sample equal to the first."""
    h_ref, h_dist = leaves[2:]
    with torch.no_grad():
        h_ref[:, 1] = h_ref[:, 0]
        h_dist[:, 2:, :, 1::2] = h_dist[:, :1, :, 1::2]
        h_dist[-1] = h_dist[0]


OBJECTIVES = {  # sizes; what is peculiar about the batch
    "N = 126": (dict(B=1), None),
    "N = 252": (dict(B=2), None),
    "N = 1008": (dict(B=8), None),
    "N = 2016": (dict(B=16), None),
    "N = 6": (dict(B=1, V=2, C=1, L=2), None),
    "N = 30": (dict(B=1, V=6, C=2, L=2), alike),
    "duplicates": (dict(B=3), alike),
    "equal severities": (dict(B=3, severity=torch.full((1, 1, 1, 1), 4.0)), None),
    "equal severities and duplicates": (dict(B=16, severity=torch.zeros(1, 1, 1, 1)), alike),
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_native_objective_equals_reference(case, monkeypatch):
    """Value and gradients of the whole objective, N = 6 .. 2016, against the references of the same ops."""
    sizes, change = OBJECTIVES[case]
    leaves, plan = batch(**sizes, F=64, E=24, dtype=torch.float32)
    if change:
        change(leaves)
    loss = small_loss(64, dtype=torch.float32, anchors=32)
    inputs = [*leaves, *loss.anchors.parameters()]
    out = loss(*leaves, plan)
    gradients = torch.autograd.grad(out.total, inputs)
    names = ("knn_graph", "transport_graph", "pair_cost")
    for name in (*names, *(f"{n}_backward" for n in names)):  # autograd rules look the backward up by name
        monkeypatch.setattr(OPS, name, reference_op(name))
    expected = loss(*leaves, plan)
    assert_close(out.graph.index, expected.graph.index)
    assert_close(out.total, expected.total, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, torch.autograd.grad(expected.total, inputs), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def reference_op(name):
    """The op with its autograd rule, run by the reference instead of the compiled kernel."""
    op = getattr(OPS, name)
    library = torch.library.Library("shamisa_test", "FRAGMENT")
    schema = str(op.default._schema).removeprefix("shamisa::")
    if not hasattr(torch.ops.shamisa_test, name):
        library.define(schema)
        library.impl(name, ops.TABLE[name], "CompositeExplicitAutograd")
        rule = {
            "knn_graph": (ops._knn_backward, ops._knn_context),
            "transport_graph": (ops._transport_backward, ops._transport_context),
            "pair_cost": (ops._pair_backward, ops._pair_context),
        }.get(name)
        if rule:
            torch.library.register_autograd(f"shamisa_test::{name}", rule[0], setup_context=rule[1], lib=library)
        KEPT.append(library)
    return getattr(torch.ops.shamisa_test, name)


KEPT = []  # a library that is collected takes its ops along
