"""The relation graphs op by op, and the whole objective forward and backward against the number of nodes N = 126 B."""

from __future__ import annotations

import functools
import os

import measure
import memory
import pytest
import torch
from measure import DEVICES, IS_REFERENCE, backend_context, errors
from memory import inputs, objective

from shamisa import functional as SF
from shamisa import ops

F, E, K, B, V = 2048, 768, 32, 2, 6
N = 126 * B


def cases(device: str) -> dict:
    """op -> (function that returns tensors, its inputs, the op it stands for, floating-point operations or None)."""
    (z_ref, z_dist, h_ref, h_dist), plan = inputs(B, F, E, device)
    z, h = (
        torch.cat([a.flatten(0, 1), b.flatten(0, 3)]).detach() for a, b in ((z_ref, z_dist), (h_ref, h_dist))
    )  # [N, E], [N, F]
    severity = plan.varying_severity
    g = torch.Generator().manual_seed(1)
    anchors = torch.randn(K, F, generator=g).to(device)
    logits = SF.transport_logits(h, anchors)
    graphs = [
        SF.structural_graph(severity, V),
        SF.ref_dist_graph(severity, V),
        SF.ref_ref_graph(severity, V),
        SF.dist_dist_graph(severity, V),
        SF.knn_graph(h),
        SF.transport_graph(logits),
    ]
    merged = SF.merge_graphs(graphs)

    def graphs_with(weights):
        return [SF.RelationGraph(w, g.index, g.nodes) for w, g in zip(weights, graphs, strict=True)]

    def gradient(function):
        """Value and gradients of the sum of a function."""

        def call(*leaves):
            fresh = [x.detach().requires_grad_() for x in leaves]
            value = function(*fresh)
            return value.detach(), *torch.autograd.grad(value.sum(), fresh)

        return call

    def plain(function):
        return lambda x: [function(x).weight]

    return {
        "structural graph": (plain(lambda s: SF.structural_graph(s, V)), [severity], "structural_graph", None),
        "ref-dist graph": (plain(lambda s: SF.ref_dist_graph(s, V)), [severity], "ref_dist_graph", None),
        "ref-ref graph": (plain(lambda s: SF.ref_ref_graph(s, V)), [severity], "ref_ref_graph", None),
        "dist-dist graph": (plain(lambda s: SF.dist_dist_graph(s, V)), [severity], "dist_dist_graph", None),
        "kNN graph + backward": (gradient(lambda x: SF.knn_graph(x).weight), [h], "knn_graph", 2 * N * N * F),
        "transport logits + backward": (
            gradient(SF.transport_logits),
            [h, anchors],
            "transport_logits",
            6 * N * F * K,
        ),
        "transport codes": (lambda x: [SF.transport_codes(x)], [logits], "transport_codes", None),
        "transport graph + backward": (
            gradient(lambda x: SF.transport_graph(x).weight),
            [logits],
            "transport_graph",
            2 * N * N * K,
        ),
        "merge": (lambda *w: [SF.merge_graphs(graphs_with(w)).weight], [g.weight for g in graphs], "merge_edges", None),
        "pair cost + backward": (gradient(lambda x: SF.pair_cost(x, merged)), [z], "pair_cost", None),
        "variance + backward": (gradient(SF.variance), [z], "variance", None),
        "covariance + backward": (gradient(SF.covariance), [z], "covariance", 4 * N * N * E),
    }


OPS = (
    *("structural graph", "ref-dist graph", "ref-ref graph", "dist-dist graph", "kNN graph + backward"),
    *("transport logits + backward", "transport codes", "transport graph + backward", "merge"),
    *("pair cost + backward", "variance + backward", "covariance + backward"),
)


@pytest.mark.parametrize("who", ["native", "reference", "compiled"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("device", DEVICES)
def test_op(row, device, name, who):
    """N = 252, F = 2048, E = 768, 32 anchors."""
    found = cases(device)
    assert tuple(found) == OPS
    function, inputs, op, flops = found[name]
    if who == "native" and not ops.has_kernel(op, device):
        pytest.skip(f"{op} has no compiled kernel for {device}: the reference runs")
    function = measure.compiled_reference(function, *inputs) if who == "compiled" else function

    def call():
        with backend_context(who):
            return function(*inputs)

    moved, wrong = measure.size_of(*inputs, *call()), IS_REFERENCE
    if who != "reference":
        with backend_context("reference"):
            wanted = found[name][0](*inputs)
        wrong = errors(call(), wanted)
    row(call, section="relations", subject=name, row=who, device=device, error=wrong, flops=flops, moved=moved)


def products(N: int) -> int:
    """Floating-point operations of the products in the objective and its gradients: kNN, logits, transport, covariance."""
    half = N // 2
    return 2 * N * N * F + 6 * N * F * K + 2 * N * N * K + 2 * 4 * half * E * min(half, E)


LARGE = os.environ.get("SHAMISA_BENCHMARK_LARGE") == "1"  # the ends of the growth: minutes
GROWTH = (1, 2, 4, 8, 16, 32, 64, 128)  # B; N = 126 .. 16128
MOST = {  # the largest B of a row: beyond it time or memory runs out (the reference holds N x N matrices of doubles)
    ("cpu", "native"): 128 if LARGE else 64,
    ("cpu", "reference"): 64 if LARGE else 16,
    ("cpu", "compiled"): 64 if LARGE else 16,
    ("cuda", "native"): 128,
    ("cuda", "reference"): 64,
    ("cuda", "compiled"): 64,
}
LOSSES = [
    (device, who, B)
    for (device, who), most in MOST.items()
    for B in (GROWTH if who != "compiled" else GROWTH[::2])  # each compiles for half a minute and more
    if B <= most
]
ALL_THREADS, GRAPH = "native, all threads", "native, CUDA graph"
LOSSES += [("cuda", GRAPH, B) for B in (2, 16, 128)]  # as a graphed training step has it: the host launches nothing
LOSSES += [("cpu", ALL_THREADS, B) for B in GROWTH[:5]]


@functools.cache  # the rows of an N come one after another in no order
def wanted_of(device: str, B: int) -> list[torch.Tensor] | str:
    """What the reference gives, or why it cannot be had."""
    need, have = 48 * (126 * B) ** 2, measure.free_memory(device)  # a few N x N matrices of doubles
    if need > have:
        return f"the reference needs {need / 1e9:.0f} GB"
    step, leaves = objective(B, F, E, device)
    with backend_context("reference"), measure.threads(measure.all_threads()):
        return [x.cpu() for x in step(*leaves)]


def graphed(step, leaves):
    """A call that replays a CUDA graph of step(*leaves) and gives what it wrote."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made once is made before the recording
        step(*leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(*leaves)

    def call(*_):
        graph.replay()
        return out

    return call


@pytest.mark.parametrize("device, who, B", [c for c in LOSSES if c[0] in DEVICES])
def test_loss(row, benchmark, device, who, B):
    """Value and gradients of the published objective with F = 2048, E = 768."""
    if not benchmark.enabled and B > (1 if who == "compiled" else 2):
        pytest.skip("large: timed runs only")
    if who.startswith("native") and not ops.has_kernel("knn_graph", device):
        pytest.skip(f"no compiled kernels of the relations for {device}")
    if who == ALL_THREADS and measure.all_threads() == 1:
        pytest.skip("one core")
    step, leaves = objective(B, F, E, device)
    call = measure.compiled_reference(step, *leaves) if who == "compiled" else step
    if who == GRAPH:
        call = graphed(step, leaves)

    def run():
        with backend_context(who):
            return call(*leaves)

    count = measure.all_threads() if who == ALL_THREADS else 1
    found, extra = IS_REFERENCE, {}
    if who != "reference":
        found = wanted_of(device, B)
        if not isinstance(found, str):
            with measure.threads(count):
                found = errors(run(), found)
    if who not in (ALL_THREADS, GRAPH) and (benchmark.enabled or (B == 1 and who == "native")):
        extra = memory.peak_extra("loss", B=B, row=who, device=device)
    with measure.threads(count):
        row(
            run,
            section="loss",
            subject=f"N = {126 * B}",
            row=who,
            device=device,
            error=found,
            nodes=126 * B,
            flops=products(126 * B),
            moved=2 * measure.size_of(*leaves),  # embeddings and features, and their gradients
            seconds=1.0,
            least=2 if B < 64 else 1,
            most=10,
            **extra,
        )
